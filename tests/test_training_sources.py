"""The lexicon, the names of pictures, the split and the Qt resource reader behind the training catalogue."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training.data import catalogue, naming, pictures, vocabulary
from sensorium.training.data.rcc import read_rcc
from sensorium.training.data.sources import Raw, Source

# --- vocabulary ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("apple", {"fruit", "food"}),
        ("beagle", {"dog", "animal", "mammal", "pet"}),
        ("strawberry", {"fruit", "berry", "food"}),
        ("police officer", {"person"}),
        ("sports car", {"car", "vehicle"}),
        ("guitar", {"musical instrument", "instrument"}),
        ("tulip", {"flower", "plant"}),
        ("sofa" and "couch", {"sofa", "furniture"}),
        ("sailboat", {"boat", "vehicle"}),
    ],
)
def test_is_a_words_are_true_of_the_noun(name: str, words: set[str]) -> None:
    assert words <= vocabulary.true_of(name)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("lion", "cat"),
        ("wolf", "dog"),
        ("orange", "vegetable"),
        ("truck", "car"),
        ("woman", "man"),
        ("bat", "bird"),
        ("whale", "fish"),
    ],
)
def test_is_a_does_not_reach_what_nobody_would_say(name: str, word: str) -> None:
    assert word not in vocabulary.true_of(name)


def test_every_parent_is_a_noun_and_there_is_no_cycle() -> None:
    nouns = vocabulary.lexicon()
    for noun in nouns.values():
        assert all(parent in nouns for parent in noun.parents)
        assert noun.name not in vocabulary.ancestors(noun.name)


@pytest.mark.parametrize(
    ("name", "article"),
    [
        ("apple", "an"),
        ("umbrella", "an"),
        ("unicorn", "a"),
        ("hourglass", "an"),
        ("scissors", "some"),
        ("bread", "some"),
        ("dog", "a"),
        ("ukulele", "a"),
    ],
)
def test_article(name: str, article: str) -> None:
    assert vocabulary.article(name) == article


@pytest.mark.parametrize(
    "word", ["car", "cherry", "box", "knife", "policewoman", "bus", "leaf", "dish rack", "tooth brush"]
)
def test_singular_undoes_plural(word: str) -> None:
    assert vocabulary.singular(vocabulary.plural(word).split()[-1]) == word.split()[-1]


def test_look_alikes_kinds_and_parts_are_never_denied() -> None:
    for name, words in {
        "truck": {"vehicle", "car", "van", "wheel"},
        "man": {"person", "boy", "shirt", "face"},
        "dog": {"beagle", "puppy", "animal"},
        "cup": {"mug", "coffee"},
        "tree": {"leaf", "plant"},
    }.items():
        assert words <= vocabulary.not_deniable(name), name


def test_clear_negatives_stay_available() -> None:
    for name, words in {
        "apple": {"dog", "car", "banana"},
        "cat": {"dog", "car", "bird"},
        "car": {"cat", "apple", "airplane"},
    }.items():
        assert not words & vocabulary.not_deniable(name), name


def test_may_cooccur_is_symmetric() -> None:
    names = ["truck", "vehicle", "man", "shirt", "apple", "dog", "tree", "leaf", "cup", "coffee"]
    for one in names:
        for two in names:
            assert vocabulary.may_cooccur(one, two) == vocabulary.may_cooccur(two, one)


def test_find_nouns_takes_the_longest_spelling() -> None:
    found = [(m.name, m.said) for m in vocabulary.find_nouns("Two hot dogs, an ice-cream cone and a teddy bear")]
    assert found == [("hot dog", "hot dogs"), ("ice cream cone", "ice-cream cone"), ("teddy bear", "teddy bear")]


def test_imagenet_has_a_name_for_each_class_in_order() -> None:
    classes = vocabulary.imagenet()
    assert [c.index for c in classes] == list(range(1000))
    by = {c.index: c for c in classes}
    assert by[1].name == "goldfish" and by[281].name == "cat" and by[162].name == "dog" and by[207].name == "dog"
    assert by[817].name == "sports car" and {"car", "vehicle"} <= set(by[817].also)
    assert by[948].name == "apple" and by[950].name == "orange" and by[954].name == "banana"
    assert by[763].name == "gun" and by[765].name == "rocking chair" and by[620].name == "laptop"
    assert all(c.name not in c.also and c.name for c in classes)


# --- names of pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "contains"),
    [
        ("A frog.", "frog", []),
        ("A girl in a wheelchair.", "girl", ["wheelchair"]),
        ("A pair of blue jeans.", "jeans", []),
        ("A bunch of grapes.", "grapes", []),
        ("dog head nicu", None, []),
        ("dog head", "dog", ["head"]),
        ("cat scratching post", None, []),
        ("woman rowing boat", "woman", ["rowboat"]),
        ("Gatto nero", "cat", []),
        ("A xanthia.", None, []),
        ("man biking", "man", ["bicycle"]),
    ],
)
def test_names_in(text: str, name: str | None, contains: list[str]) -> None:
    found, more = naming.names_in(text)
    assert found == name
    if name:
        assert [c for c in contains if c not in more] == []


def test_corrections_name_only_known_nouns() -> None:
    fixes, foreign = naming.corrections()
    nouns = vocabulary.lexicon()
    unknown = {
        part.strip()
        for _, replacement in fixes
        if replacement not in ("-", "background")
        for part in replacement.split("+")
        if part.strip() not in nouns and part.strip() not in vocabulary.spellings()
    }
    assert unknown == set()
    assert foreign["cavallo"] == "horse"


# --- pictures and splits ---------------------------------------------------------------------------


def test_dhash_finds_the_mirror_image_and_not_another() -> None:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).polygon([(5, 60), (20, 5), (60, 40)], fill="navy")
    plain, mirrored = pictures.dhash(image)
    flipped = pictures.dhash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert flipped[0] == mirrored and flipped[1] == plain
    assert (plain ^ mirrored).bit_count() > 6


def test_cut_out_removes_white_ground_and_keeps_white_inside() -> None:
    image = Image.new("RGBA", (80, 80), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((15, 15, 65, 65), fill="red")
    draw.ellipse((35, 35, 45, 45), fill="white")
    cut = pictures.cut_out(image)
    alpha = np.asarray(cut)[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[cut.height // 2, cut.width // 2] == 255


def test_cut_out_leaves_a_photograph_alone() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 4), dtype=np.uint8))
    image.putalpha(255)
    assert np.array_equal(np.asarray(pictures.cut_out(image)), np.asarray(image))


def _picture(path: Path, seed: int) -> None:
    blocks = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((96, 96), Image.Resampling.NEAREST).save(path)


def test_build_splits_by_noun_and_drops_look_alikes(tmp_path: Path) -> None:
    hidden = next(n for n in vocabulary.lexicon() if catalogue.held_out(n))
    shown = "apple"
    names = [shown, hidden, shown, "xyzzy", shown]
    tree = tmp_path / "deb/toy"
    tree.mkdir(parents=True)
    for number, seed in enumerate((1, 2, 3, 4, 2)):  # the last one looks like the hidden test picture
        _picture(tree / f"{number}.png", seed)
    # a different file with the same look: one pixel changed
    image = Image.open(tree / "4.png").convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(tree / "4.png")

    def read(trees: tuple[Path, ...]):
        for number, name in enumerate(names):
            yield Raw(trees[0] / f"{number}.png", f"{number}.png", (f"A {name}.",))

    source = Source("toy", ("deb/toy",), "clipart", "drawing", "public domain", read)
    path = catalogue.build(tmp_path / "out", trees=tmp_path, sources=[source])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["name"], r["split"]) for r in rows] == [(shown, "train"), (hidden, "test"), (shown, "train")]
    assert rows[0]["article"] == "an" and "fruit" in rows[0]["also"] and rows[0]["licence"] == "public domain"
    assert Path(rows[0]["path"]).exists()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A registry of one package with one picture; lists the packages that are fetched."""
    tree = tmp_path / "tree"
    tree.mkdir()
    _picture(tree / "apple.png", 1)
    fetched: list[str] = []
    part = hub.Part("deb:toy=1", "*.png", "0" * 64, 123_400_000, "public domain")
    source = Source(
        "toy", ("deb/toy",), "clipart", "drawing", "public domain",
        lambda trees: iter([Raw(trees[0] / "apple.png", "apple.png", ("An apple.",))]),
    )  # fmt: skip
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue.packages, "packages", lambda: {"deb/toy": (part, ("*.png",))})
    monkeypatch.setattr(catalogue.packages, "tree", lambda name: fetched.append(name) or tree)
    monkeypatch.setattr(catalogue, "SOURCES", (source,))
    return fetched


def test_the_catalogue_of_the_registries_is_announced_and_built_once(registry, capsys) -> None:
    path = catalogue.registry_catalogue(note="Say no with --no.")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["apple"]
    said = capsys.readouterr()
    assert "1 packages: 123 MB to download" in said.err and "Say no with --no." in said.err
    assert "1 of 1: deb:toy=1 (123.4 MB)" in said.err and said.out == ""
    assert said.err.index("to download") < said.err.index("toy: 1 pictures")
    registry.clear()
    assert catalogue.registry_catalogue() == path
    assert registry == [] and capsys.readouterr().err == ""


def test_changed_tables_make_another_catalogue(registry, monkeypatch) -> None:
    path = catalogue.registry_catalogue()
    monkeypatch.setattr(catalogue, "_state", lambda: "f" * 64)
    assert catalogue.registry_catalogue() != path and path.is_file(), "a run that reads the old one is not disturbed"


def test_without_resvg_no_catalogue_is_built_and_the_sentence_says_what_to_install(registry, monkeypatch) -> None:
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SensoriumError, match=r'resvg.*pip install -e "\.\[train\]"'):
        catalogue.registry_catalogue()
    assert registry == [], "before anything is downloaded"


def test_near_counts_the_bits_that_differ() -> None:
    hashes = np.array([0, 2**64 - 1], np.uint64)
    assert catalogue.near(np.array([0b111111, 0b1111111 << 40, 2**64 - 2], np.uint64), hashes).tolist() == [
        True,
        False,
        True,
    ]
    assert not catalogue.near(hashes, np.array([], np.uint64)).any()


def test_a_category_is_never_held_out() -> None:
    assert not any(catalogue.held_out(name) for name in ("animal", "dog", "fruit", "vehicle", "person", "cat", "car"))
    share = sum(catalogue.held_out(n) for n in vocabulary.lexicon()) / len(vocabulary.lexicon())
    assert 0.05 < share < 0.12


# --- Qt resources ----------------------------------------------------------------------------------


def _rcc(name: str, payload: bytes, compressed: bool) -> bytes:
    stored = struct.pack(">I", len(payload)) + zlib.compress(payload) if compressed else payload
    data = struct.pack(">I", len(stored)) + stored
    encoded = name.encode("utf-16-be")
    names = struct.pack(">HI", len(name), 0) + encoded
    root = struct.pack(">IHII", 0, 2, 1, 1)
    leaf = struct.pack(">IHHHI", 0, 1 if compressed else 0, 0, 0, 0)
    tree = root + leaf
    at = 20
    header = b"qres" + struct.pack(">4I", 1, at, at + len(tree), at + len(tree) + len(data))
    return header + tree + data + names


@pytest.mark.parametrize("compressed", [False, True])
def test_rcc_round_trip(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.rcc"
    path.write_bytes(_rcc("cat.webp", b"picture" * 9, compressed))
    assert list(read_rcc(path)) == [("cat.webp", b"picture" * 9)]


@pytest.mark.parametrize("damage", [b"", b"qres", b"qres" + b"\xff" * 30, b"PK\x03\x04" + bytes(60)])
def test_damaged_rcc_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.rcc"
    path.write_bytes(damage)
    with pytest.raises(SensoriumError):
        list(read_rcc(path))
