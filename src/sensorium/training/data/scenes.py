"""Composite scenes with exact labels: named cut-outs placed on backgrounds, in boxes, counted, overlapped and degraded.

A scene is drawn from a seed alone, so the same recipe gives the same pictures. Labels come from what was placed, never
from looking at the result.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from sensorium.errors import SensoriumError

Rng = np.random.Generator
CANVAS = 320  # pixels; encoders resize from here, so a scene is drawn once for every resolution up to this


@dataclass(frozen=True)
class Item:
    """One named picture of the catalogue (see ``catalogue.py`` for how it is made)."""

    path: str
    kind: str
    name: str
    article: str
    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    source: str = ""
    style: str = ""
    split: str = "train"

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Item:
        return cls(
            path=row["path"],
            kind=row["kind"],
            name=row["name"],
            article=row.get("article") or "a",
            also=tuple(row.get("also") or ()) + tuple(row.get("contains") or ()),
            never=tuple(row.get("never") or ()),
            attributes=dict(row.get("attributes") or {}),
            source=row.get("source", ""),
            style=row.get("style", ""),
            split=row.get("split", "train"),
        )


@dataclass(frozen=True)
class Placed:
    """An object where it stands: centre and size as fractions of the canvas; ``inside`` = in the drawn box."""

    item: Item
    x: float
    y: float
    w: float
    h: float
    inside: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture with its exact labels."""

    pixels: np.ndarray  # uint8 [CANVAS, CANVAS, 3]
    objects: tuple[Placed, ...]
    kind: str  # single | several | count | box | photo | empty
    box: str = ""  # what the objects lie in ("box", "crate"), if anything
    ground: Item | None = None  # the photograph behind the objects: what it shows may be true, but is not asked for

    def labels(self) -> dict[str, Any]:
        """Everything that ``questions.Asker`` needs to know, as plain JSON. In a grey picture nothing has a colour."""
        ground, grey = self.ground, int(np.ptp(self.pixels, axis=2).max()) <= 8
        return {
            "kind": self.kind,
            "box": self.box,
            "photo": ground is not None or self.kind == "photo",
            "maybe": [ground.name, *ground.also, *ground.never] if ground else [],
            "objects": [
                {
                    "name": o.item.name, "also": o.item.also, "never": o.item.never,
                    "attributes": {k: v for k, v in o.item.attributes.items() if not (grey and k == "color")},
                    "x": round(o.x, 3), "y": round(o.y, 3), "w": round(o.w, 3), "h": round(o.h, 3), "inside": o.inside,
                }
                for o in self.objects
            ],
        }  # fmt: skip


def _open(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, ValueError) as error:
        raise SensoriumError(f"The training picture {path} cannot be read ({error}); correct the catalogue.") from None


# Decoded pictures are kept: 0.5 MB a cut-out and 2.8 MB a background at most, in every process that draws.
@lru_cache(maxsize=1500)
def _load(path: str, limit: int = 360) -> Image.Image:
    image = _open(path)
    image.draft("RGB", (2 * limit, 2 * limit))
    image = image.convert("RGBA")
    image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    box = image.getchannel("A").getbbox()
    return image.crop(box) if box else image


def open_cutout(item: Item) -> Image.Image:
    """RGBA picture of at most 360 pixels a side, cropped to what is not transparent."""
    return _load(item.path)


@lru_cache(maxsize=120)
def _load_background(path: str) -> Image.Image:
    image = _open(path)
    image.draft("RGB", (3 * CANVAS, 3 * CANVAS))
    image = image.convert("RGB")
    image.thumbnail((3 * CANVAS, 3 * CANVAS), Image.Resampling.BILINEAR)
    return image


def photo_crop(path: str, rng: Rng, least: float = 0.6) -> Image.Image:
    """A random crop that keeps at least ``least`` of each side, squashed to the canvas and perhaps mirrored."""
    image = _load_background(path)
    w, h = image.size
    cw, ch = int(w * rng.uniform(least, 1.0)), int(h * rng.uniform(least, 1.0))
    left, top = int(rng.integers(0, w - cw + 1)), int(rng.integers(0, h - ch + 1))
    image = image.crop((left, top, left + cw, top + ch)).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _smooth_noise(rng: Rng, cells: int, channels: int = 3) -> np.ndarray:
    small = rng.integers(0, 256, (cells, cells, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


def background(rng: Rng, photos: Sequence[Item]) -> tuple[Image.Image, Item | None]:
    """A photograph's crop (most often), a plain colour, a gradient, blurred noise or a table edge."""
    if photos and rng.random() < 0.62:
        item = photos[int(rng.integers(len(photos)))]
        image = photo_crop(item.path, rng, least=0.25)
        blurred = rng.random() < 0.35
        return (image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 5))) if blurred else image), item
    return _plain_background(rng), None


def _plain_background(rng: Rng) -> Image.Image:
    kind = rng.uniform(0.62, 1.0)
    if kind < 0.72:
        return Image.new("RGB", (CANVAS, CANVAS), (255, 255, 255))
    if kind < 0.82:
        return Image.new("RGB", (CANVAS, CANVAS), tuple(int(v) for v in rng.integers(0, 256, 3)))
    if kind < 0.92:
        a, b = rng.integers(0, 256, (2, 3)).astype(np.float32)
        t = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None, None]
        field_ = np.broadcast_to(a * (1 - t) + b * t, (CANVAS, CANVAS, 3))
        if rng.random() < 0.5:
            field_ = field_.transpose(1, 0, 2)
        return Image.fromarray(np.ascontiguousarray(field_).astype(np.uint8))
    image = Image.fromarray(_smooth_noise(rng, int(rng.integers(3, 24))))
    if rng.random() < 0.5:  # a table: the lower part in another colour
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, int(CANVAS * rng.uniform(0.4, 0.8)), CANVAS, CANVAS), fill=_wood(rng))
    return image


def _wood(rng: Rng) -> tuple[int, int, int]:
    base = np.array([150, 105, 60]) * rng.uniform(0.5, 1.5)
    return tuple(int(v) for v in np.clip(base + rng.normal(0, 18, 3), 0, 255))  # type: ignore[return-value]


def _shift_colour(rgb: Image.Image, rng: Rng) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.6:
            rgb = enhancer(rgb).enhance(float(rng.uniform(0.7, 1.3)))
    return rgb


MOULDED = 0.4
FLAT = ("emoji-flat", "clipart", "drawing")  # styles that a relief may turn into something like a render


def relief(picture: Image.Image, rng: Rng) -> Image.Image:
    """A flat drawing as if it were moulded and lit from above: its outline and its patches of colour bulge.

    Flat drawings are most of what has names; this brings them nearer to renders and photographs. ``picture`` is RGBA.
    """
    side = max(picture.size)
    alpha, light = picture.getchannel("A"), picture.convert("L")
    height = np.zeros(alpha.size[::-1], np.float32)
    for share in (0.02, 0.05, 0.11):
        height += np.asarray(alpha.filter(ImageFilter.GaussianBlur(share * side)), np.float32) * share * side / 90
    inner = np.asarray(light.filter(ImageFilter.GaussianBlur(0.03 * side)), np.float32)
    height += inner * float(rng.uniform(-0.03, 0.05)) * 0.03 * side
    dy, dx = np.gradient(height)
    towards = float(rng.normal(-2.0, 0.5))  # radians: most light comes from above, a little from the left
    slope = -(dx * math.cos(towards) + dy * math.sin(towards))
    up = 1.0 / np.sqrt(1.0 + dx**2 + dy**2)
    shade = 1.0 + float(rng.uniform(0.25, 0.6)) * np.tanh(slope) - float(rng.uniform(0.1, 0.4)) * (1.0 - up)
    gloss = float(rng.uniform(0, 110)) * np.clip(up * 0.75 + slope * up * 0.6, 0, 1) ** 12
    # smooth gradients instead of edges between patches
    rgb = np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.006 * side)), np.float32)
    lit = np.clip(rgb * shade[..., None] + gloss[..., None], 0, 255).astype(np.uint8)
    result = Image.fromarray(lit)
    result.putalpha(alpha)
    return result


def paste(
    canvas: Image.Image, item: Item, x: float, y: float, size: float, rng: Rng, tilt: float = 12.0, moulded: float = 0.0
) -> Placed:
    """Put a cut-out's centre at (x, y), its larger side ``size``, all as fractions of the canvas.

    ``moulded`` is the share of flat drawings that get a relief: for training scenes alone.
    """
    picture = open_cutout(item)
    if moulded and item.style in FLAT and rng.random() < moulded:
        picture = relief(picture, rng)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        picture = picture.rotate(float(rng.normal(0, tilt)), Image.Resampling.BILINEAR, expand=True)
    stretch = math.exp(float(rng.normal(0, 0.08)))
    scale = size * CANVAS / max(picture.size)
    w = max(8, int(picture.width * scale * stretch))
    h = max(8, int(picture.height * scale / stretch))
    picture = picture.resize((w, h), Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.LANCZOS)
    alpha = picture.getchannel("A")
    rgb = _shift_colour(picture.convert("RGB"), rng)
    left, top = int(x * CANVAS - w / 2), int(y * CANVAS - h / 2)
    if rng.random() < 0.3:  # a soft shadow ties the object to its ground
        shadow = alpha.filter(ImageFilter.GaussianBlur(4)).point(lambda v: v // 3)
        canvas.paste((0, 0, 0), (left + int(rng.integers(-6, 7)), top + int(rng.integers(2, 9))), shadow)
    canvas.paste(rgb, (left, top), alpha)
    return Placed(item, x, y, w / CANVAS, h / CANVAS)


def degrade(image: Image.Image, rng: Rng) -> Image.Image:
    """What cameras and file formats do: colour, blur, noise, grey, JPEG blocks."""
    image = _shift_colour(image, rng)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.0))))
    if rng.random() < 0.04:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.25:
        noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(3, 14), (CANVAS, CANVAS, 1))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(rng.integers(25, 85)))
        image = Image.open(data).convert("RGB")
    return image


def places_for(rng: Rng, n: int) -> list[tuple[float, float, float]]:
    """Places for ``n`` objects that overlap little: (x, y, largest size), in random order."""
    if n == 1:
        size = float(rng.uniform(0.4, 1.15))
        room = max(0.0, (1 - size) / 2 + 0.05)
        return [(0.5 + float(rng.uniform(-room, room)), 0.5 + float(rng.uniform(-room, room)), size)]
    columns = n if n <= 3 else math.ceil(n / 2)
    rows = 1 if n <= 3 else 2
    cells = [(c, r) for c in range(columns) for r in range(rows)]
    order = rng.permutation(len(cells))[:n]
    places = []
    for i in order:
        c, r = cells[int(i)]
        size = float(rng.uniform(0.7, 1.05)) / max(columns, rows)
        x = (c + 0.5) / columns + float(rng.normal(0, 0.12)) / columns
        y = (r + 0.5) / rows + float(rng.normal(0, 0.25 if rows == 1 else 0.1)) / max(rows, columns)
        places.append((x, min(max(y, 0.15), 0.85), size))
    return places


BOXES = ("box", "crate", "basket", "tray")


def _draw_box(canvas: Image.Image, rng: Rng) -> tuple[str, tuple[float, float, float, float]]:
    """An open box seen from above; returns its name and inner rectangle (left, top, right, bottom), fractions."""
    name = BOXES[int(rng.integers(2))]
    left, top = float(rng.uniform(0.02, 0.2)), float(rng.uniform(0.05, 0.25))
    right, bottom = float(rng.uniform(0.75, 0.98)), float(rng.uniform(0.75, 0.97))
    wall = float(rng.uniform(0.03, 0.08))
    colour = _wood(rng) if rng.random() < 0.8 else tuple(int(v) for v in rng.integers(40, 230, 3))
    dark = tuple(int(v * 0.6) for v in colour)
    light = tuple(min(255, int(v * 1.15)) for v in colour)
    draw = ImageDraw.Draw(canvas)
    outer = [v * CANVAS for v in (left, top, right, bottom)]
    inner = [v * CANVAS for v in (left + wall, top + wall, right - wall, bottom - wall)]
    draw.rectangle(outer, fill=light, outline=dark, width=2)
    draw.rectangle(inner, fill=dark, outline=tuple(int(v * 0.4) for v in colour), width=2)
    if name == "crate":
        for i in range(1, 5):
            y = inner[1] + (inner[3] - inner[1]) * i / 5
            draw.line((inner[0], y, inner[2], y), fill=colour, width=3)
    return name, (left + wall, top + wall, right - wall, bottom - wall)


# Photographs are what counts; line drawings are far from them.
STYLE_WEIGHT = {"photo": 4.0, "drawing": 1.5, "clipart": 1.0, "emoji-3d": 1.0, "emoji-flat": 0.5}


class Pool:
    """The catalogue's pictures of one split, drawn by name first: rare nouns are seen nearly as often as common."""

    def __init__(self, items: Sequence[Item], weight: Callable[[str], float] | None = None) -> None:
        self.backgrounds = [i for i in items if i.kind == "background" or i.source == "wallpapers"]
        self.photos = [i for i in items if i.kind == "photo"]
        by_name: dict[str, list[Item]] = {}
        photos_of: dict[str, list[Item]] = {}
        for item in items:
            if item.kind == "photo":
                photos_of.setdefault(item.name, []).append(item)
            elif item.kind != "background":
                by_name.setdefault(item.name, []).append(item)
        self.photo_names = sorted(photos_of)
        self.photos_of = photos_of
        shares = np.array([len(photos_of[n]) ** 0.5 for n in self.photo_names])
        self.photo_weights = shares / shares.sum() if len(shares) else shares
        self.names = sorted(by_name)
        self.by_name = by_name
        styles = {n: np.array([STYLE_WEIGHT.get(i.style, 1.0) for i in by_name[n]]) for n in self.names}
        self.within = {n: s / s.sum() for n, s in styles.items()}
        # between uniform over names and uniform over pictures: a noun with 40 pictures has more to teach than one of 1
        weights = np.array([styles[n].sum() ** 0.5 * (weight(n) if weight else 1.0) for n in self.names])
        self.weights = weights / weights.sum() if len(weights) else weights

    def photo(self, rng: Rng) -> Item:
        """A whole photograph whose name is known."""
        options = self.photos_of[self.photo_names[int(rng.choice(len(self.photo_names), p=self.photo_weights))]]
        return options[int(rng.integers(len(options)))]

    def item(self, rng: Rng, name: str | None = None) -> Item:
        name = name or self.names[int(rng.choice(len(self.names), p=self.weights))]
        options = self.by_name[name]
        return options[int(rng.choice(len(options), p=self.within[name]))]


def compose(pool: Pool, seed: int, mix: dict[str, float] | None = None) -> Scene:
    """Draw the scene that ``seed`` stands for. ``mix`` gives the weights of the kinds of scene."""
    rng = np.random.default_rng([seed, 0x5CE7E])
    mix = dict(mix or {"single": 0.42, "several": 0.28, "count": 0.12, "box": 0.08, "photo": 0.12, "empty": 0.05})
    if not pool.photos:
        mix.pop("photo", None)
    if not pool.names:
        mix = {kind: weight for kind, weight in mix.items() if kind in ("photo", "empty")}
    if not sum(mix.values()) > 0:
        raise SensoriumError(
            f"The catalogue has {len(pool.names)} names of cut-outs and {len(pool.photos)} photographs to train on, "
            "too few for the scenes of the recipe; change data.mix or the catalogue."
        )
    kinds, weights = list(mix), np.array(list(mix.values()), dtype=np.float64)
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    box, ground = "", None
    placed: list[Placed] = []
    if kind == "photo":
        item = pool.photo(rng)
        canvas = photo_crop(item.path, rng, least=0.75)
        placed.append(Placed(item, 0.5, 0.5, 1.0, 1.0))
    else:
        canvas, ground = background(rng, pool.backgrounds)
        canvas = canvas.copy()
        if kind == "single":
            placed.append(paste(canvas, pool.item(rng), *places_for(rng, 1)[0], rng, moulded=MOULDED))
        elif kind == "several":
            n = int(rng.choice([2, 3, 4], p=[0.6, 0.28, 0.12]))
            names: list[str] = []
            for x, y, size in places_for(rng, n):
                item = pool.item(rng)
                for _ in range(5):
                    if item.name not in names:
                        break
                    item = pool.item(rng)
                names.append(item.name)
                placed.append(paste(canvas, item, x, y, size, rng, moulded=MOULDED))
        elif kind == "count":
            item = pool.item(rng)
            same = pool.by_name[item.name]
            n = int(rng.integers(1, 6))
            for x, y, size in places_for(rng, n):
                pick = item if rng.random() < 0.7 else same[int(rng.integers(len(same)))]
                placed.append(paste(canvas, pick, x, y, min(size, 0.6), rng, tilt=5, moulded=MOULDED))
            if rng.random() < 0.3 and n <= 3:  # one stranger, so that counting needs the noun
                placed.append(
                    paste(
                        canvas,
                        pool.item(rng),
                        rng.uniform(0.1, 0.9),
                        rng.uniform(0.8, 0.92),
                        0.25,
                        rng,
                        moulded=MOULDED,
                    )
                )
        elif kind == "box":
            box, (left, top, right, bottom) = _draw_box(canvas, rng)
            n = int(rng.integers(1, 4))
            for x, y, size in places_for(rng, n):
                at_x = left + (right - left) * min(max(x, 0.2), 0.8)
                at_y = top + (bottom - top) * min(max(y, 0.2), 0.8)
                put = paste(
                    canvas,
                    pool.item(rng),
                    at_x,
                    at_y,
                    min(size, 0.8) * min(right - left, bottom - top),
                    rng,
                    moulded=MOULDED,
                )
                placed.append(Placed(put.item, put.x, put.y, put.w, put.h, inside=True))
    return Scene(np.asarray(degrade(canvas, rng)), tuple(placed), kind, box, ground)


def load_items(catalogue: Path) -> list[Item]:
    """Every row of a catalogue file (JSON lines); relative paths count from the file's directory.

    Raises:
        SensoriumError: the file cannot be read or a line is no entry; the sentence has the line.
    """
    items, read = [], 0
    try:
        with catalogue.open(encoding="utf-8") as lines:
            for line in lines:
                read += 1
                if line.strip():
                    row = json.loads(line)
                    items.append(Item.from_json({**row, "path": str(catalogue.parent / row["path"])}))
    except OSError as error:
        raise SensoriumError(f"The catalogue {catalogue} cannot be read ({error.strerror}); give its path.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SensoriumError(
            f"{catalogue}, line {max(1, read)}: no entry of a catalogue ({type(error).__name__}: {str(error)[:80]}); "
            "a line is a JSON object with path, kind and name."
        ) from None
    return items
