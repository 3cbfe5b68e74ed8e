"""Pictures made ready for scenes: trimmed, cut out of white ground, shrunk, and compared by difference hash."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE = 384  # longest side of a kept picture, pixels


def dhash(image: Image.Image) -> tuple[int, int]:
    """64-bit difference hashes of the picture on white and of its mirror image."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    results = []
    for view in (small, small[:, ::-1]):
        bits = (view[:, 1:] > view[:, :-1]).ravel()
        results.append(int("".join("1" if b else "0" for b in bits), 2))
    return results[0], results[1]


def cut_out(image: Image.Image, tolerance: int = 14) -> Image.Image:
    """An opaque picture on a plain white ground gets its ground made transparent, filling inwards from the border.

    Left as it is when less than nine tenths of the border is white, or when little or nearly all of it would vanish.
    """
    pixels = np.asarray(image)
    if pixels[..., 3].min() < 250:
        return image
    light = pixels[..., :3].min(axis=2) >= 255 - tolerance
    border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    if border.mean() < 0.85:
        return image
    ground = np.zeros_like(light)
    ground[0], ground[-1], ground[:, 0], ground[:, -1] = light[0], light[-1], light[:, 0], light[:, -1]
    while True:  # grow along rows and columns until nothing changes; a few dozen sweeps for real shapes
        before = int(ground.sum())
        for step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            axis, direction = step
            ground |= np.roll(ground, direction, axis) & light
        if int(ground.sum()) == before:
            break
    if not 0.04 < ground.mean() < 0.97:
        return image
    result = pixels.copy()
    result[..., 3] = np.where(ground, 0, 255)
    mask = Image.fromarray(result[..., 3]).filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.7))
    cut = Image.fromarray(result, "RGBA")
    cut.putalpha(mask)
    box = mask.point(lambda a: 255 * (a > 16)).getbbox()
    return cut.crop(box) if box else image


def _least_alpha(image: Image.Image) -> int:
    return int(np.asarray(image.getchannel("A")).min())


def prepare(path: Path, cache: Path, side: int = SIDE) -> tuple[Path, Image.Image] | None:
    """Trim transparent margins, shrink to ``side`` pixels, keep in ``cache`` as PNG (opaque photographs as JPEG).

    Returns the file and the RGBA picture; None when the picture is too small, too large or empty.
    """
    code = hashlib.sha256(f"{side}".encode() + path.read_bytes()).hexdigest()[:20]
    for suffix in (".png", ".jpg"):
        if (cache / (code + suffix)).exists():
            with Image.open(cache / (code + suffix)) as kept:
                return cache / (code + suffix), kept.convert("RGBA")
    if path.suffix == ".svg":
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=side, skip_system_fonts=True))
        image: Image.Image = Image.open(io.BytesIO(data)).convert("RGBA")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too large is left out just below
            opened = Image.open(path)
        with opened:
            if opened.size[0] * opened.size[1] > 40_000_000 or min(opened.size) < 24:
                return None
            opened.draft("RGB", (2 * side, 2 * side))
            image = opened.convert("RGBA")
    alpha = image.getchannel("A").point(lambda a: 255 * (a > 16))
    box = alpha.getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 12:
        return None
    image = image.crop(box)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image = cut_out(image)
    opaque = _least_alpha(image) >= 128
    target = cache / (code + (".jpg" if opaque and path.suffix in (".jpg", ".jpeg", ".webp") else ".png"))
    cache.mkdir(parents=True, exist_ok=True)
    (image.convert("RGB") if target.suffix == ".jpg" else image).save(target, quality=92)
    return target, image


@dataclass(frozen=True)
class Prepared:
    """A kept picture: its file, the short digest of the original, hashes of it and its mirror image, alpha or not."""

    file: str
    digest: str
    hashes: tuple[int, int]
    alpha: bool


class Book:
    """Remembers what was prepared (by path, size and time of change), so that naming anew takes seconds."""

    def __init__(self, out_dir: Path) -> None:
        self.cache = out_dir / "pictures"
        self.file = out_dir / "prepared.json"
        self.known: dict[str, list] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def look(self, path: Path) -> Prepared | None:
        """The prepared picture, None when it cannot be used."""
        stat = path.stat()
        key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{SIDE}"
        if key not in self.known or (self.known[key] and not Path(self.known[key][0]).exists()):
            self.known[key] = self._prepare(path)
        row = self.known[key]
        return Prepared(row[0], row[1], (row[2], row[3]), row[4]) if row else None

    def _prepare(self, path: Path) -> list:
        try:
            ready = prepare(path, self.cache)
        except (OSError, ValueError, Image.DecompressionBombError):
            return []
        if ready is None:
            return []
        file, image = ready
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return [str(file), file.stem, *dhash(white), _least_alpha(image) < 128]

    def save(self) -> None:
        """Write the book beside the pictures."""
        partial = self.file.with_suffix(".part")
        partial.write_text(json.dumps(self.known))
        partial.replace(self.file)
