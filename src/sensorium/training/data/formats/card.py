"""A data card: what a data set holds, where it comes from, under which licences, digests of its files, and a look."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sensorium.composition import file_sha256
from sensorium.errors import SensoriumError
from sensorium.training.data.formats.check import Report, check
from sensorium.training.data.formats.reader import Reader
from sensorium.training.data.formats.sample import MediaRef, Sample

COLUMNS, ROWS, TILE, LINES = 4, 3, 224, 4
_MOST_FILES = 200


def write_card(
    readers: Sequence[Reader], output: Path, *, progress: Callable[[int], None] = lambda samples: None
) -> list[Path]:
    """Write the card, and beside it the contact sheet as a PNG when there are pictures.

    Returns:
        The files written.

    Raises:
        SensoriumError: the card cannot be written, or a data set cannot be read at all.
    """
    reports = [check(reader, show=0, pick=COLUMNS * ROWS, progress=progress) for reader in readers]
    picked = [sample for i in range(COLUMNS * ROWS) for r in reports if i < len(r.picked) for sample in [r.picked[i]]]
    sheet = contact_sheet(picked[: COLUMNS * ROWS])
    picture = output.with_suffix(".png")
    lines = ["# Data card", ""]
    for reader, report in zip(readers, reports):
        lines += _section(reader, report)
    if sheet is not None:
        lines += ["## A look", "", f"![{len(picked[: COLUMNS * ROWS])} samples]({picture.name})", ""]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(lines), encoding="utf-8")
        if sheet is not None:
            sheet.save(picture)
    except OSError as error:
        raise SensoriumError(f"{output} cannot be written ({error.strerror}); choose another place with -o.") from None
    return [output, picture] if sheet is not None else [output]


def _section(reader: Reader, report: Report) -> list[str]:
    files, media = reader.files(), _media_digest(reader)
    counted = [("samples", report.samples), ("turns", report.turns), ("pictures", report.pictures)]
    lines = [f"## {_plain(reader.path.name or reader.name)}", "", f"Format `{report.kind}`.", ""]
    lines += ["| what | how many |", "|---|---|", *(f"| {name} | {number:,} |" for name, number in counted)]
    lines += [f"| {what} | {number:,} |" for what, number in sorted((report.broken + report.doubts).items())]
    lines += ["", *_shares("licence", report.licences), "", *_shares("source", report.sources), ""]
    lines += ["| file | bytes | sha256 |", "|---|---|---|"]
    for path in files[:_MOST_FILES]:
        lines.append(f"| `{_plain(_relative(path, reader))}` | {path.stat().st_size:,} | `{file_sha256(path)}` |")
    if len(files) > _MOST_FILES:
        rest = hashlib.sha256("".join(file_sha256(path) for path in files[_MOST_FILES:]).encode()).hexdigest()
        lines.append(f"| {len(files) - _MOST_FILES:,} more | | `{rest}` (of their digests) |")
    if media:
        lines.append(f"| {media[0]:,} files of media | | `{media[1]}` (of their digests) |")
    return [*lines, ""]


def _media_digest(reader: Reader) -> tuple[int, str] | None:
    """(files, digest over their names and digests) of media that stand beside the data."""
    paths = {m.path for s in reader.samples() if isinstance(s, Sample) for m in s.media if m.path and m.span is None}
    there = sorted(path for path in paths - set(reader.files()) if path.is_file())
    digest = hashlib.sha256()
    for path in there:
        digest.update(f"{file_sha256(path)}  {_relative(path, reader)}\n".encode())
    return (len(there), digest.hexdigest()) if there else None


def _relative(path: Path, reader: Reader) -> str:
    resolved = path.resolve()
    for base in (reader.path.resolve(), reader.path.resolve().parent, reader.root.directory):
        if resolved.is_relative_to(base) and resolved != base:
            return resolved.relative_to(base).as_posix()
    return path.name


def _shares(name: str, counted: Counter[str]) -> list[str]:
    rows = [f"| {_plain(value)} | {number:,} |" for value, number in counted.most_common(50)]
    return [f"| {name} | samples |", "|---|---|", *rows]


def _plain(text: str) -> str:
    """Text out of the data, so that it cannot leave its cell."""
    return "".join(c if c.isprintable() and c not in "|`<>[]" else " " for c in text)[:200]


# The contact sheet ----------------------------------------------------------------------------------------------------


def contact_sheet(samples: Sequence[Sample]) -> Image.Image | None:
    """Up to a dozen samples: the first picture of each, the last question and its answer; None without pictures."""
    shown = [(_thumbnail(sample.media[0]) if sample.media else None, sample) for sample in samples]
    if not any(picture for picture, _ in shown):
        return None
    font = ImageFont.load_default()
    height = TILE + 14 * LINES + 8
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(shown) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, sample) in enumerate(shown):
        left, top = i % COLUMNS * TILE, i // COLUMNS * height
        if picture:
            sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
        asked = next((m.text for m in reversed(sample.messages) if m.role == "user"), "")
        text = _wrapped(asked, 34)[: LINES // 2] + _wrapped("> " + (sample.answers or ("",))[-1], 34)
        for line, words in enumerate(text[:LINES]):
            draw.text((left + 6, top + TILE + 4 + 14 * line), words, fill="black", font=font)
    return sheet


def _thumbnail(medium: MediaRef) -> Image.Image | None:
    try:
        picture = Image.fromarray(np.array(medium.load().pixels))
    except SensoriumError:
        return None
    picture.thumbnail((TILE - 8, TILE - 8))
    return picture


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap("".join(c if c.isprintable() else " " for c in text[:400]), width)
