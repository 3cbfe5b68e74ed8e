"""Search a folder of pictures by a text or by a picture, over an index that is kept and brought up to date.

The index holds one vector a picture (half a kilobyte to two), so that a search encodes only what is new or changed. Any
number of searches may run at once: one of them encodes, the others wait for it and take what it wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium import hub
from sensorium.arguments import output_file
from sensorium.errors import SensoriumError, UsageError

if TYPE_CHECKING:
    from sensorium.two_tower import TwoTower

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
LONGEST_QUERY = 2000
_VERSION = 1  # raise when the file's layout changes
_MEMBER = slice(30, 39)  # where the zip file that an index is names its first member: facts.npy
_SAVE_EVERY = 100  # pictures between two writes: what an interrupt may cost


@dataclass(frozen=True)
class Found:
    """A picture that was found: its file and the cosine with the query, -1 to 1."""

    file: Path
    score: float


@dataclass
class Index:
    """The vectors of a folder's pictures.

    Attributes:
        files: relative path -> (size, time of change in ns, row among the vectors or -1 for a broken picture).
        vectors: float32 [rows, dim].
        skipped: relative path -> why it could not be read.
    """

    files: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a search found: the best pictures, how many were compared, how many were encoded now, what was skipped."""

    found: list[Found]
    pictures: int
    encoded: int
    skipped: dict[str, str]


def search(
    model: TwoTower,
    directory: str | Path,
    text: str | None = None,
    image: Any = None,
    *,
    top: int = 5,
    index: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """The pictures below a directory that are most like a text or a picture.

    Args:
        model: the two-tower model.
        directory: where to look; hidden files and folders are left out, links to folders are not followed.
        text, image: what to look for; one of the two.
        top: how many to give at most.
        index: file of the index; by default one in the user's cache for this directory and model.
        progress: called with (pictures encoded, to encode).

    Raises:
        UsageError: no such directory, no query or two, an empty text, a `top` below 1, an `index` that is none.
        SensoriumError: the query picture cannot be read, or the index cannot be written.
    """
    query = check_query(text, image, top)
    folder = Path(directory)
    if not folder.is_dir():
        raise UsageError(f"{str(directory)[:200]} is no directory; give the folder whose pictures to search.")
    place = Path(index) if index is not None else index_path(model, folder)
    if index is not None:
        _check_place(place)
    kept, encoded = bring_up_to_date(model, folder, place, progress)
    rows = [(name, row) for name, (_, _, row) in sorted(kept.files.items()) if row >= 0]
    result: list[Found] = []
    if rows:
        wanted = model.embed(text=query) if query is not None else model.embed(image)
        scores = kept.vectors[[row for _, row in rows]] @ wanted
        order = np.argsort(-scores, kind="stable")[:top]
        result = [Found(folder / rows[at][0], round(float(scores[at]), 6)) for at in order]
    return Result(result, len(rows), encoded, dict(sorted(kept.skipped.items())))


def as_json(result: Result, query: str, directory: str) -> dict[str, Any]:
    """The object that `sensorium search --json` prints."""
    return {
        "query": query,
        "directory": directory,
        "pictures": result.pictures,
        "encoded": result.encoded,
        "results": [{"file": str(each.file), "score": each.score} for each in result.found],
        "skipped": result.skipped,
    }


def check_query(text: object, image: object, top: object) -> str | None:
    """The query's text, None for a picture. Raises UsageError for what is no query."""
    if (text is None) == (image is None):
        raise UsageError("give search a text or a picture to look for, one of the two.")
    if type(top) is not int or not 1 <= top <= 1_000_000:
        raise UsageError(f"top is {top!r}; give a whole number from 1 to 1,000,000.")
    if text is None:
        return None
    if not isinstance(text, str) or not text.strip():
        raise UsageError("the text to look for is empty; write what the pictures should show.")
    if len(text) > LONGEST_QUERY:
        raise UsageError(f"the text has {len(text)} characters; use at most {LONGEST_QUERY}.")
    return text.strip()


def index_path(model: TwoTower, directory: Path) -> Path:
    """Where the index of a directory stands by default."""
    name = f"{directory.resolve()};{model.identity()}"
    return hub.cache_dir("search") / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.npz"


def bring_up_to_date(
    model: TwoTower, directory: Path, place: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[Index, int]:
    """Read an index, encode what is new or changed, leave out what has gone, and write it where anything changed.

    Returns:
        The index, and how many pictures were encoded.
    """
    identity = model.identity()
    found = dict(_pictures(directory))
    kept = read_index(place, identity)
    if kept is not None and _fresh(kept, found):
        return kept, 0
    with hub.file_lock(_lock_of(place)):
        kept = read_index(place, identity) or Index()  # another search may have written it meanwhile
        if _fresh(kept, found):
            return kept, 0
        return _updated(model, directory, place, identity, kept, found, progress)


def _lock_of(place: Path) -> Path:
    """What is locked while an index is written: in the cache, so that an index of one's own has no file beside it."""
    return hub.cache_dir("search") / hashlib.sha256(os.fsencode(place.resolve())).hexdigest()[:32]


def _check_place(place: Path) -> None:
    """Refuse what cannot be written, a directory that is not there, and to write an index over what is none."""
    output_file(place, "--index")
    if not place.absolute().parent.is_dir():
        raise UsageError(f"--index {place} cannot be written ({place.parent} does not exist); make that directory.")
    try:
        with place.open("rb") as file:
            start = file.read(_MEMBER.stop)
    except OSError:  # there is none yet; or reading and writing it will say why
        return
    if start and start[_MEMBER] != b"facts.npy":
        raise UsageError(f"{place} is there and is no index of pictures; give --index another file.")


def _fresh(kept: Index, found: dict[str, tuple[int, int]]) -> bool:
    return {name: (size, time) for name, (size, time, _) in kept.files.items()} == found


def _updated(
    model: TwoTower,
    directory: Path,
    place: Path,
    identity: str,
    kept: Index,
    found: dict[str, tuple[int, int]],
    progress: Callable[[int, int], None] | None,
) -> tuple[Index, int]:
    """The index with every file that is there; the caller holds its lock."""
    made = Index()
    rows: list[np.ndarray] = []
    missing = []
    for name, facts in found.items():
        before = kept.files.get(name)
        if before is None or before[:2] != facts:
            missing.append(name)
        elif before[2] < 0:
            made.files[name], made.skipped[name] = before, kept.skipped.get(name, "")
        else:
            made.files[name] = (*facts, len(rows))
            rows.append(kept.vectors[before[2]])
    for done, name in enumerate(missing, start=1):
        try:
            rows.append(_vector(model, directory / name))
            made.files[name] = (*found[name], len(rows) - 1)
        except SensoriumError as error:
            made.files[name], made.skipped[name] = (*found[name], -1), str(error)
        if progress:
            progress(done, len(missing))
        if done % _SAVE_EVERY == 0:
            write_index(place, identity, made, rows)
    return write_index(place, identity, made, rows), len(missing)


def _vector(model: TwoTower, path: Path) -> np.ndarray:
    """A picture's vector; an error that is not about the picture (a part is damaged, say) is no reason to skip it."""
    from sensorium.media import load_image

    model.image_encoder.get()
    return model.embed_images([load_image(path).pixels])[0]


def read_index(place: Path, identity: str) -> Index | None:
    """An index, None where there is none, or one of another model or layout, or a damaged one: it is then made anew."""
    try:
        with np.load(place, allow_pickle=False) as data:
            facts = json.loads(bytes(data["facts"]).decode())
            vectors = np.asarray(data["vectors"], np.float32)
        if facts["version"] != _VERSION or facts["identity"] != identity or vectors.ndim != 2:
            return None
        files = {str(name): (int(a), int(b), int(c)) for name, (a, b, c) in facts["files"].items()}
        if any(row >= len(vectors) for _, _, row in files.values()) or not np.isfinite(vectors).all():
            return None
        return Index(files, vectors, {str(k): str(v) for k, v in facts["skipped"].items()})
    except Exception:  # a zip of strangers' bytes: zipfile, zlib, json and numpy each raise their own
        return None


def write_index(place: Path, identity: str, made: Index, rows: list[np.ndarray]) -> Index:
    """Write an index atomically and return it as it will be read. Raises SensoriumError when the disk refuses."""
    made.vectors = np.stack(rows).astype(np.float16).astype(np.float32) if rows else np.zeros((0, 0), np.float32)
    facts = {"version": _VERSION, "identity": identity, "files": made.files, "skipped": made.skipped}
    data = np.frombuffer(json.dumps(facts, ensure_ascii=True).encode(), np.uint8)
    with hub.atomic_write(place) as file:
        np.savez(file, facts=data, vectors=made.vectors.astype(np.float16))
    return made


def _pictures(directory: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(relative path, (size, time of change)) of every picture file, in an order that does not change."""
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in SUFFIXES:  # noqa: PTH122
                continue
            path = Path(folder, name)
            try:
                facts = path.stat()
            except OSError:  # gone meanwhile, or a link to nothing
                continue
            if path.is_file():  # no pipe
                yield path.relative_to(directory).as_posix(), (facts.st_size, facts.st_mtime_ns)
