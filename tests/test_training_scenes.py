"""Scenes and the questions about them: every answer is checked against the labels by other code than wrote it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

import tiny_training
from sensorium.errors import SensoriumError
from sensorium.training.data import vocabulary
from sensorium.training.data.questions import NUMBERS, SCENERY, Asker, Vocabulary
from sensorium.training.data.scenes import CANVAS, Placed, Pool, Scene, compose, load_items, relief

SCENES = 160


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return load_items(tiny_training.write_catalogue(tmp_path_factory.mktemp("catalogue")))


@pytest.fixture(scope="module")
def pool(items):
    return Pool(items)


@pytest.fixture(scope="module")
def scenes(pool):
    """Labels as training reads them: through JSON."""
    return [json.loads(json.dumps(compose(pool, seed).labels())) for seed in range(SCENES)]


@pytest.fixture(scope="module")
def asker(items):
    return Asker(Vocabulary.from_scenes([(i.name, i.also) for i in items if i.kind != "background"], common=["apple"]))


@pytest.fixture(scope="module")
def asked(asker, scenes):
    """(scene, question) pairs, a few thousand."""
    rng = np.random.default_rng(0)
    mix = dict.fromkeys(("yesno", "describe", "what", "which", "count", "colour", "side"), 1.0)
    return [(scene, qa) for scene in scenes for _ in range(3) for qa in asker.ask(scene, rng, 9, mix)]


def true_of(scene):
    return {w for o in scene["objects"] for w in (o["name"], *o["also"])}


def noun(phrase):
    """ "a red apple" -> "red apple"."""
    return re.sub(r"^(an?|some|the) ", "", phrase.strip())


def named(phrase, names):
    """The one of ``names`` that a phrase such as "a red apple" is about."""
    found = [n for n in names if noun(phrase) == n or noun(phrase).endswith(" " + n)]
    assert found, (phrase, names)
    return max(found, key=len)


# Scenes ---------------------------------------------------------------------------------------------------------------


def test_a_relief_keeps_the_outline_and_lights_one_side():
    disc = Image.new("RGBA", (200, 160), (0, 0, 0, 0))
    ImageDraw.Draw(disc).ellipse((20, 20, 180, 140), fill=(120, 60, 60, 255))
    lit = [relief(disc, np.random.default_rng(seed)) for seed in range(8)]
    for picture in lit:
        assert picture.mode == "RGBA" and picture.getchannel("A").tobytes() == disc.getchannel("A").tobytes()
    light = np.stack([np.asarray(p.convert("L"), np.float32) for p in lit])
    assert light[:, 30:60, 100].mean() > light[:, 110:135, 100].mean() + 10  # lit from above
    assert np.ptp(np.asarray(disc.convert("L"))[30:135, 100]) == 0  # and was flat before


def test_labels_say_what_was_placed(pool):
    kinds = Counter()
    for seed in range(60):
        scene = compose(pool, seed)
        kinds[scene.kind] += 1
        assert scene.pixels.shape == (CANVAS, CANVAS, 3) and scene.pixels.dtype == np.uint8
        labels = scene.labels()
        names = [o["name"] for o in labels["objects"]]
        assert names == [placed.item.name for placed in scene.objects]
        assert {"single": len(names) == 1, "empty": not names, "photo": len(names) == 1}.get(
            scene.kind, len(names) >= 1
        )
        assert all(o["w"] > 0 and o["h"] > 0 and 0 <= o["x"] <= 1 and 0 <= o["y"] <= 1 for o in labels["objects"])
        assert (scene.kind == "box") == bool(labels["box"]) == any(o["inside"] for o in labels["objects"])
        if scene.ground:
            assert labels["photo"] and scene.ground.name in labels["maybe"]
    assert len(kinds) >= 5


def test_an_object_stands_where_its_label_says(tmp_path):
    """A magenta square on what is left of the background: its pixels are found again at (x, y)."""
    from PIL import Image

    from sensorium.training.data.scenes import Item, paste

    path = tmp_path / "square.png"
    Image.new("RGBA", (50, 50), (255, 0, 255, 255)).save(path)
    item = Item(str(path), "cutout", "box", "a")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y, size = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.4)
        canvas = Image.new("RGB", (CANVAS, CANVAS), (0, 128, 0))
        placed = paste(canvas, item, x, y, size, rng)
        pixels = np.asarray(canvas).astype(int)
        ys, xs = np.nonzero((pixels[..., 0] > 90) & (pixels[..., 1] < 90))
        assert abs(xs.mean() / CANVAS - placed.x) < 0.02 and abs(ys.mean() / CANVAS - placed.y) < 0.02
        assert abs((xs.max() - xs.min() + 1) / CANVAS - placed.w) < 0.03


def test_a_seed_gives_one_scene_and_another_seed_another(pool):
    digests = [hashlib.sha256(compose(pool, seed).pixels.tobytes()).hexdigest() for seed in (5, 5, 6, (3 << 32) + 5)]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_scenes_and_questions_are_the_same_in_every_process(items, tmp_path):
    """Text hashing differs between processes: nothing may depend on the order of a set."""
    code = """
import hashlib, json, sys
import numpy as np
from pathlib import Path
from sensorium.training.data.questions import Asker, Vocabulary
from sensorium.training.data.scenes import Pool, compose, load_items
items = load_items(Path(sys.argv[1]))
pool, digest = Pool(items), hashlib.sha256()
asker = Asker(Vocabulary.from_scenes([(i.name, i.also) for i in items]))
for seed in range(8):
    scene = compose(pool, seed)
    digest.update(scene.pixels.tobytes())
    labels, rng = json.loads(json.dumps(scene.labels())), np.random.default_rng(seed)
    for _ in range(20):
        digest.update(repr(asker.ask(labels, rng, 9, {"which": 1.0, "yesno": 1.0, "describe": 1.0})).encode())
print(digest.hexdigest())
"""
    catalogue = tiny_training.write_catalogue(tmp_path)
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", code, str(catalogue)]
        found.add(subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def test_a_grey_picture_has_no_colours(items):
    apple = next(i for i in items if i.name == "apple")
    grey = np.repeat(np.random.default_rng(0).integers(0, 255, (CANVAS, CANVAS, 1), dtype=np.uint8), 3, axis=2)
    bright = grey.copy()
    bright[:40, :40] = (255, 0, 0)
    placed = (Placed(apple, 0.5, 0.5, 0.3, 0.3),)
    assert "color" not in Scene(grey, placed, "single").labels()["objects"][0]["attributes"]
    assert Scene(bright, placed, "single").labels()["objects"][0]["attributes"]["color"] == "red"


def test_too_small_a_catalogue_is_one_sentence(tmp_path):
    pool = Pool(load_items(tiny_training.write_catalogue(tmp_path, names=0)))
    assert compose(pool, 0, {"single": 1.0, "photo": 1.0}).kind == "photo"
    with pytest.raises(SensoriumError, match="0 names of cut-outs and 3 photographs"):
        compose(pool, 0, {"single": 1.0})
    with pytest.raises(SensoriumError, match="0 photographs"):
        compose(Pool([]), 0, {"photo": 1.0})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"kind": "cutout", "name": "cat"}', "KeyError: 'path'"),
        ('{"path": "x.png", "kind": "cutout"}', "KeyError: 'name'"),
        ('{"path": 7, "kind": "cutout", "name": "cat"}', "TypeError"),
        ("\udcff", "UnicodeDecodeError"),
    ],
)
def test_bad_catalogues_are_one_sentence_with_the_line(tmp_path, line, reason):
    path = tmp_path / "catalogue.jsonl"
    good = json.dumps(tiny_training.row("a.png", "cutout", "apple", "", "photo"))
    path.write_bytes(f"{good}\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(SensoriumError, match=reason) as caught:
        load_items(path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    with pytest.raises(SensoriumError, match="cannot be read"):
        load_items(tmp_path / "gone.jsonl")


def test_a_missing_picture_is_one_sentence(tmp_path):
    path = tmp_path / "catalogue.jsonl"
    path.write_text(json.dumps(tiny_training.row("gone.png", "cutout", "apple", "", "photo")))
    with pytest.raises(SensoriumError, match=r"gone\.png cannot be read"):
        compose(Pool(load_items(path)), 0, {"single": 1.0})


# Questions ------------------------------------------------------------------------------------------------------------


def test_enough_is_asked_of_every_kind(asked):
    tasks = Counter(qa.task for _, qa in asked)
    assert all(tasks[t] >= 40 for t in ("yesno", "describe", "what", "which", "count", "colour", "side")), tasks
    answers = Counter(qa.answer for _, qa in asked if qa.task == "yesno")
    assert 0.35 < answers["Yes."] / (answers["Yes."] + answers["No."]) < 0.65


def test_yes_means_true_and_no_means_neither_true_nor_possible(asked):
    for scene, qa in asked:
        if qa.task != "yesno":
            continue
        assert qa.word in qa.question
        if qa.answer == "Yes.":
            assert qa.word in true_of(scene)
            continue
        assert qa.answer == "No."
        never = {w for o in scene["objects"] for w in o["never"]}
        assert qa.word not in true_of(scene) | never | set(scene["maybe"]) | {scene["box"]}
        assert not (scene["photo"] and qa.word in SCENERY)
        for o in scene["objects"]:  # "is there a car?" is never denied of a sports car
            assert qa.word not in o["name"].split() and o["name"] not in qa.word.split()
            assert qa.word not in vocabulary.not_deniable(o["name"])


def test_a_yes_and_its_no_are_about_the_same_picture(asker, scenes):
    rng = np.random.default_rng(3)
    for scene in scenes[:60]:
        if scene["objects"]:
            answers = Counter(qa.answer for qa in asker.ask(scene, rng, 8, {"yesno": 1.0}))
            assert abs(answers["Yes."] - answers["No."]) <= 1 and answers["Yes."]


def test_counts_are_those_of_what_was_placed(asked):
    for scene, qa in asked:
        if qa.task == "count":
            assert scene["kind"] != "photo"  # a photograph of a dog may show three
            assert int(qa.answer.rstrip(".")) == sum(qa.word in (o["name"], *o["also"]) for o in scene["objects"])
            assert qa.word not in scene["maybe"] and not (scene["photo"] and qa.word in SCENERY)
            assert vocabulary.plural(qa.word) in qa.question


def test_sides_follow_from_x(asked):
    forms = Counter()
    for scene, qa in asked:
        if qa.task != "side":
            continue
        objects = scene["objects"]
        x = {o["name"]: o["x"] for o in objects}
        text, answer = qa.question, qa.answer.rstrip(".").lower()
        if match := re.fullmatch(r"Is the (.+) left or right of the (.+)\?", text):
            a, b = match.groups()
            assert answer == ("left" if x[a] < x[b] else "right")
            forms["of each other"] += 1
        elif match := re.fullmatch(r"Is the (.+) to the left of the (.+)\? Answer yes or no\.", text):
            a, b = match.groups()
            assert answer == ("yes" if x[a] < x[b] else "no")
            forms["yes or no"] += 1
        elif match := re.fullmatch(r"What is on the (left|right)\?", text):
            assert len(objects) == 2
            choose = min if match[1] == "left" else max
            assert named(answer, x) == choose(objects, key=lambda o: o["x"])["name"]
            forms["what"] += 1
        else:
            match = re.fullmatch(r"Is the (.+) on the left or on the right\?", text)
            assert match and len(objects) == 1
            assert answer == ("left" if x[match[1]] < 0.5 else "right") and abs(x[match[1]] - 0.5) >= 0.15
            forms["of the picture"] += 1
        if match and len(match.groups()) == 2 and match[1] in x:  # "the dog" must be one thing alone
            for name in match.groups():
                assert sum(name in (o["name"], *o["also"]) for o in objects) == 1
                assert abs(x[match[1]] - x[match[2]]) >= 0.2
    assert len(forms) == 4


def test_colours_are_the_catalogues_and_of_one_thing(asked):
    for scene, qa in asked:
        if qa.task == "colour":
            o = next(o for o in scene["objects"] if o["name"] == qa.word)
            assert qa.answer.lower() == o["attributes"]["color"] + "."
            assert sum(qa.word in (other["name"], *other["also"]) for other in scene["objects"]) == 1


def test_exactly_one_of_the_options_is_there(asked):
    for scene, qa in asked:
        if qa.task == "which":
            listed = re.fullmatch(r"Which of these is in the picture: (.+)\?", qa.question)[1]
            options = [noun(part) for part in re.split(r", | or ", listed)]
            there = [option for option in options if option in true_of(scene)]
            assert there == [noun(qa.answer.rstrip(".").lower())] and len(options) >= 2


def test_what_names_the_one_thing(asked):
    for scene, qa in asked:
        if qa.task == "what":
            names = {o["name"] for o in scene["objects"]}
            assert len(names) == 1 and noun(qa.answer.rstrip(".").lower()) in names
            if match := re.fullmatch(r"What (\w+) is this\?", qa.question):
                assert match[1] in scene["objects"][0]["also"]


def test_descriptions_name_everything_from_left_to_right(asked):
    for scene, qa in asked:
        if qa.task != "describe":
            continue
        text = qa.answer.rstrip(".").lower()
        names = [o["name"] for o in sorted(scene["objects"], key=lambda o: o["x"])]
        for name, count in Counter(names).items():
            assert re.search(rf"\b({re.escape(name)}|{re.escape(vocabulary.plural(name))})\b", text), (text, name)
            if count > 1 and scene["kind"] == "count":
                assert f"{NUMBERS[count]} {vocabulary.plural(name)}" in text
        if match := re.fullmatch(r"(.+) on the left and (.+) on the right", text):
            assert [named(match[1], names), named(match[2], names)] == names
        if scene["box"]:
            assert text.endswith(" in it") and scene["box"] in text


def test_a_bare_background_is_only_denied(asker, scenes):
    empty = [scene for scene in scenes if not scene["objects"]]
    assert empty
    for scene in empty:
        for qa in asker.ask(scene, np.random.default_rng(1), 9):
            assert (qa.task, qa.answer) == ("yesno", "No.")
