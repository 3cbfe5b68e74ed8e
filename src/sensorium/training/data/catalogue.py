"""The catalogue of named pictures that the training scenes are made of.

``build`` reads every source, names each picture with words of the lexicon, splits by object word and by style, drops
test look-alikes from the training side and writes one JSON line per picture (see ``Entry``). A picture whose name does
not end in a noun that the lexicon knows is dropped: fewer pictures with right names beat many with doubtful ones.

``registry_catalogue`` is the catalogue of the pinned packages (``packages.tsv``), built once and kept in the cache;
training and the evaluation's scenes both take it from there.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from sensorium import hub
from sensorium.errors import SensoriumError, install
from sensorium.hub.progress import say
from sensorium.training.data import packages, vocabulary
from sensorium.training.data.naming import colour_of, correction, name_of
from sensorium.training.data.pictures import Book
from sensorium.training.data.sources import SOURCES, Source
from sensorium.training.data.words import word_list

HELD_OUT_NOUNS = 0.10  # share of nouns that no training picture shows or names
HELD_OUT_STYLE = "emoji-3d"

# Files of this package that draw from a finished catalogue, or have nothing to do with it: changing them does not
# change it.
_READERS = ("scenes.py", "questions.py", "stream.py", "spoken", "voices")
_UNPACKED_MB = 1100  # what the unpacked and the prepared pictures take beside the archives


@dataclass
class Entry:
    """One named picture.

    ``also`` are other words true of the named thing, ``contains`` other things in view, ``never`` words that may be
    true and so must not be denied. ``kind`` is cutout, clipart, emoji, photo or background; a photograph of scenery
    alone is listed twice, once as photo and once as background (its key ends in "#ground").
    """

    path: str
    key: str
    kind: str
    name: str
    article: str
    also: list[str]
    contains: list[str]
    never: list[str]
    attributes: dict[str, str]
    caption: str
    source: str
    style: str
    split: str
    alpha: bool
    licence: str
    hashes: list[int] = field(default_factory=list, repr=False)

    def nouns(self) -> list[str]:
        """The lexicon nouns that the picture shows."""
        return [self.name, *self.contains]


@functools.lru_cache(maxsize=1)
def _scenery() -> frozenset[str]:
    """Nouns of pictures that other things can be pasted on."""
    return vocabulary.kinds_of("landscape") | word_list("scenery")


def held_out(name: str) -> bool:
    """True for the tenth of the nouns (chosen by hash, so adding nouns moves none) that only test pictures show.

    Broad words that many kinds fall under are never held out: they would take their kinds with them.
    """
    if vocabulary.kinds_of(name) or name in word_list("always-train"):
        return False
    return int(hashlib.sha256(("noun:" + name).encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT_NOUNS


def entries(source: Source, trees: tuple[Path, ...], book: Book, unnamed: list[str] | None = None) -> Iterator[Entry]:
    """Every nameable picture of one source, before the split between sources is settled."""
    twice: set[str] = set()
    for raw in source.read(trees):
        named = name_of(source.name, raw)
        if named is None or (named[0] not in vocabulary.lexicon() and named[0] != "background"):
            if unnamed is not None and correction(source.name, raw.key) != "-":
                unnamed.append(f"{source.name} {raw.key} | {raw.texts} | {raw.hints} | {named}")
            continue
        name, contains, text = named
        ready = book.look(raw.path)
        if ready is None or ready.digest in twice:
            continue
        twice.add(ready.digest)
        alpha = ready.alpha
        contains = [c for c in contains if c in vocabulary.lexicon()]
        shown = [name, *contains]
        never = sorted(frozenset().union(*(vocabulary.not_deniable(n) for n in shown)))
        style = raw.style or source.style
        kind = source.kind
        if style == "photo":
            kind = "cutout" if alpha else "background" if name == "background" else "photo"
            if not alpha:
                never = sorted({*never, *word_list("unnoticed")})
        elif kind in ("photo", "cutout"):
            kind = "clipart"
        entry = Entry(
            path=ready.file,
            key=f"{source.name}:{raw.key}",
            kind=kind,
            name=name,
            article=vocabulary.article(name),
            also=vocabulary.also(name),
            contains=contains,
            never=never,
            attributes=colour_of(text, name),
            caption=text,
            source=source.name,
            style=style,
            split="test" if any(held_out(n) for n in shown) else "train",
            alpha=alpha,
            licence=raw.licence or source.licence,
            hashes=list(ready.hashes),
        )
        yield entry
        if kind == "photo" and set(shown) <= _scenery():  # a named photograph, and also a ground to paste things on
            yield replace(entry, kind="background", key=entry.key + "#ground")


ALIKE = 6  # bits of a difference hash by which two pictures of the same thing may differ


def near(one: np.ndarray, many: np.ndarray, bits: int = ALIKE) -> np.ndarray:
    """[len(one)] bool: which of the uint64 difference hashes ``one`` are within ``bits`` of any of ``many``."""
    if not len(many):
        return np.zeros(len(one), dtype=bool)
    ones = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)  # np.bitwise_count is NumPy 2 alone
    split = np.ascontiguousarray(many, np.uint64).view(np.uint16).reshape(-1, 4)
    values = np.ascontiguousarray(one, np.uint64).view(np.uint16).reshape(-1, 4)
    return np.array([ones[split ^ value].sum(axis=1, dtype=np.uint16).min() <= bits for value in values], dtype=bool)


def drop_leaks(rows: list[Entry]) -> list[Entry]:
    """Leave out training pictures that look like a test picture or its mirror image."""
    test = np.array([h for r in rows if r.split == "test" for h in r.hashes[:1]], dtype=np.uint64)
    train = [r for r in rows if r.split == "train"]
    leak = np.zeros(len(train), dtype=bool)
    for side in (0, 1):
        leak |= near(np.array([r.hashes[side] for r in train], dtype=np.uint64), test)
    gone = {id(r) for r, bad in zip(train, leak, strict=True) if bad}
    return [r for r in rows if id(r) not in gone]


def registry_catalogue(*, note: str = "") -> Path:
    """The catalogue of the registry pictures in the cache; fetched and built when the tables changed or it is missing.

    What is about to be downloaded is said on standard error beforehand, with its size, then shown as it goes.

    Args:
        note: a sentence that is added to that announcement.

    Raises:
        SensoriumError: a package cannot be fetched, or what draws SVG pictures is not installed.
    """
    directory = hub.cache_dir("training")
    built = directory / f"catalogue-{_state()[:16]}.jsonl"
    if built.is_file():
        return built
    with hub.file_lock(directory / "catalogue"):
        if built.is_file():
            return built
        if importlib.util.find_spec("resvg_py") is None:
            raise SensoriumError(
                f"The catalogue of pictures needs resvg to draw SVG files, which is not installed; {install('train')}, "
                "or `pip install resvg-py` for the catalogue alone."
            )
        _fetch(note)
        _build_with_a_bar(directory, built)
    return built


def _state() -> str:
    """Digest of every table and module that the catalogue comes from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.is_file() and not path.name.startswith(_READERS):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _fetch(note: str) -> None:
    """Fetch the packages that are not in the cache, each with its own progress; say first how much that is."""
    kept = hub.cache_dir("trees")
    missing = [
        (tree, part) for tree, (part, _) in packages.packages().items() if not (kept / part.sha256[:32]).is_dir()
    ]
    if not missing:
        return
    size = sum(part.size or 0 for _, part in missing) / 1e6
    say(
        f"The catalogue of pictures is made once, of {len(missing)} packages: {size:.0f} MB to download, about "
        f"{size + _UNPACKED_MB:.0f} MB on the disk, and a few minutes to prepare. {note}".rstrip()
    )
    for number, (tree, part) in enumerate(missing, 1):
        say(f"{number} of {len(missing)}: {part.source} ({(part.size or 0) / 1e6:.1f} MB)")
        packages.tree(tree)


def _build_with_a_bar(directory: Path, target: Path) -> None:
    """``build`` into ``target``, with a bar on a terminal and a line per source elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Preparing pictures", total=len(SOURCES))

        def tick(source: Source, pictures: int) -> None:
            bar.update(task, completed=SOURCES.index(source), description=f"Preparing {source.name}: {pictures}")

        build(directory, None if console.is_terminal else say, target=target, tick=tick)


def build(
    out_dir: Path,
    progress: Callable[[str], None] | None = None,
    trees: Path | None = None,
    sources: Iterable[Source] | None = None,
    target: Path | None = None,
    tick: Callable[[Source, int], None] | None = None,
) -> Path:
    """Write the catalogue, ``out_dir/catalogue.jsonl`` or ``target``, and return its path.

    ``trees`` is a folder of unpacked packages ("deb/NAME", "npm/NAME"); without it the hub fetches them. ``progress``
    is told a line after each source, ``tick`` how many pictures of a source are done.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    say = progress or (lambda _: None)
    book = Book(out_dir)
    rows: list[Entry] = []
    unnamed: list[str] = []
    for source in SOURCES if sources is None else sources:
        roots = tuple(trees / name if trees else packages.tree(name) for name in source.trees)
        found: list[Entry] = []
        for entry in entries(source, roots, book, unnamed):
            found.append(entry)
            if tick:
                tick(source, len(found))
        for row in found:
            if row.style == HELD_OUT_STYLE:
                row.split = "test"
        say(f"{source.name}: {len(found)} pictures, {len({r.name for r in found})} nouns")
        rows += found
        book.save()
    kept = drop_leaks(rows)
    say(f"{len(rows) - len(kept)} training pictures left out: too like a test picture")
    target = target or out_dir / "catalogue.jsonl"
    partial = target.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        for row in kept:
            file.write(json.dumps({k: v for k, v in asdict(row).items() if k != "hashes"}, ensure_ascii=False) + "\n")
    partial.replace(target)
    (out_dir / "unnamed.txt").write_text("\n".join(unnamed), encoding="utf-8")
    return target
