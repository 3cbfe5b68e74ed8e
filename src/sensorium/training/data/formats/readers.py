"""The formats: the registry, and the look that tells which one a path holds."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.lines import json_items, json_lines, opened
from sensorium.training.data.formats.reader import Reader

READERS: dict[str, tuple[str, str]] = {
    "messages": ("messages", "MessagesReader"),
    "llava": ("llava", "LlavaReader"),
    "webdataset": ("webdataset", "WebDatasetReader"),
    "folder": ("folder", "FolderReader"),
    "hf": ("hf", "HuggingFaceReader"),
}
"""Kind -> (module of this package, class)."""


def open_set(path: str | Path, kind: str | None = None, **options: Any) -> Reader:
    """The reader of a data set.

    Args:
        path: a file or a directory.
        kind: a key of `READERS`; None looks at the content.
        options: of `Reader`: media, name, licence, question.

    Raises:
        UsageError: there is nothing at the path, nothing that is known, or the kind is unknown.
        SensoriumError: the files cannot be read.
    """
    path = Path(path)
    try:
        if "\0" in str(path):
            raise ValueError("NUL")
        if not path.exists():
            raise UsageError(f"{path} does not exist; give the file or directory of a data set.")
    except (OSError, ValueError):
        raise UsageError(f"{str(path)[:100]!r} is no path; give the file or directory of a data set.") from None
    if kind is not None and kind not in READERS:
        raise UsageError(f"the format {kind!r} is unknown; known formats: {', '.join(READERS)}.")
    module, name = READERS[kind or detect(path)]
    reader: Reader = getattr(import_module(f"{__package__}.{module}"), name)(path, **options)
    return reader


def detect(path: Path) -> str:
    """The kind of what stands at a path, by its content. Raises UsageError when it is none of `READERS`."""
    if path.is_file():
        return _of_file(path)
    names = {p.name for p in path.iterdir()}
    if names & {"state.json", "dataset_dict.json"}:
        return "hf"
    if any(name.endswith(".tar") for name in names):
        return "webdataset"
    if names & {"metadata.jsonl", "captions.txt"}:
        return "folder"
    for name in sorted(names):
        if name.lower().endswith((".jsonl", ".ndjson", ".json", ".parquet")) and (path / name).is_file():
            return _of_file(path / name)
    return "folder"


def _of_file(path: Path) -> str:
    with opened(path) as file:
        head = file.read(512)
    if head.startswith(b"PAR1"):
        return "messages"
    if head[257:262] == b"ustar":
        return "webdataset"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if not text:
        raise SensoriumError(f"{path} is empty, so it is no data set that is known here; name another.")
    if text not in (b"[", b"{"):
        raise UsageError(
            f"{path} is no data set that is known here; give JSON, JSONL, Parquet or tar files, a folder of pictures "
            "or a saved Hugging Face data set."
        )
    try:
        first = next(json_items(path) if text == b"[" else json_lines(path), None)
    except SensoriumError:
        return "messages"  # whose reader says what is wrong with it
    turns = first.value.get("conversations") if first and isinstance(first.value, dict) else None
    turn = turns[0] if isinstance(turns, list) and turns else None
    return "llava" if isinstance(turn, dict) and "from" in turn else "messages"
