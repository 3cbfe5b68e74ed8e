"""The image suite on planted models: who looks, who guesses, who only knows labels must be told apart by the rows."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import yaml
from PIL import Image

from sensorium.evaluation import measures, photos, run, scenes
from sensorium.evaluation.items import EvalItem, Outcome
from sensorium.evaluation.scorecard import Scorecard
from sensorium.evaluation.suites import image
from sensorium.training.data.scenes import Item

KINDS = {
    "animal": ("cat", "dog", "horse", "cow"),
    "vehicle": ("car", "bus", "truck", "boat"),
    "fruit": ("apple", "pear", "lemon", "banana"),
    "furniture": ("chair", "table", "bed", "lamp"),
}
HELD_OUT = {"cow", "boat"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> list[Item]:
    """Sixteen nouns, each a cut-out of its own colour."""
    folder = tmp_path_factory.mktemp("cutouts")
    items = []
    for at, (kind, noun) in enumerate((kind, noun) for kind, nouns in KINDS.items() for noun in nouns):
        picture = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
        picture.paste((15 * at, 255 - 15 * at, (97 * at) % 256, 255), (10, 10, 70, 70))
        picture.save(folder / f"{noun}.png")
        items.append(Item(str(folder / f"{noun}.png"), "cutout", noun, "a", (kind,), style="photo", split="test"))
    return items


@pytest.fixture(scope="module")
def items(catalogue) -> list[EvalItem]:
    """A small suite: scenes of the catalogue, and photographs that are flat colours."""
    trained = {i.name for i in catalogue} - HELD_OUT | {w for i in catalogue for w in i.also}
    made = scenes.scene_items(catalogue, trained, scenes.Sizes(30, 12, 12, 20, 20, 12), seed=5)
    chosen = photos.photos("dev")
    flat = {photo.id: _flat(at) for at, photo in enumerate(chosen)}
    return [*photos.photo_items(chosen, flat), *made]


def _flat(at: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (at % 256, at // 256, 77)).save(data, "PNG")
    return data.getvalue()


class Planted:
    """A model that has the suite's own labels of each picture, and is handed as much of them as its kind could know."""

    def __init__(self, items: list[EvalItem]) -> None:
        self.truth = {(item.image, item.question, item.task): item for item in items}
        self.nouns = {item.image: item.nouns for item in items if item.task == "caption"}

    def item(self, picture, question, task):
        return self.truth.get((picture, question, task))

    def examine(self, questions):
        return [self.outcome(question) for question in questions]

    def outcome(self, asked):
        if asked.task == "choice":
            return Outcome(scores=tuple(self.score(asked.image, asked.text, asked.choices)))
        if asked.task == "caption":
            return Outcome(self.caption(asked.image))
        text = self.answer(asked.image, asked.text) if asked.generate else ""
        margin = self.yes_no_margin(asked.image, asked.text) if asked.task == "yesno" else 0.0
        return Outcome(text, margin)


class Oracle(Planted):
    """Knows every answer about the picture it is shown; says no to all else."""

    def yes_no_margin(self, picture, question):
        item = self.item(picture, question, "yesno")
        return 3.0 if item is not None and item.answer == "yes" else -3.0

    def answer(self, picture, question):
        item = self.item(picture, question, "count")
        return item.answer if item else "Yes." if self.yes_no_margin(picture, question) > 0 else "No."

    def caption(self, picture):
        return "A picture of " + " and ".join(self.nouns.get(picture, ("nothing",)))

    def score(self, picture, prompt, choices):
        item = self.item(picture, prompt, "choice")
        return np.array([float(item is not None and choice == item.answer) for choice in choices])


class Cheater(Planted):
    """Never looks: knows of each question how often its answer is yes, or what it mostly is."""

    def __init__(self, items):
        super().__init__(items)
        self.prior = defaultdict(Counter)
        for item in items:
            self.prior[item.question][item.answer] += 1
        self.common = Counter(noun for item in items for noun in item.nouns).most_common(1)[0][0]

    def yes_no_margin(self, picture, question):
        seen = self.prior[question]
        return math.log((seen["yes"] + 0.5) / (seen["no"] + 0.5))

    def answer(self, picture, question):
        return self.prior[question].most_common(1)[0][0]

    def caption(self, picture):
        return f"A {self.common}."

    def score(self, picture, prompt, choices):
        return np.array([self.prior[prompt][choice] for choice in choices], float)


class Labels(Oracle):
    """Knows which things are there and nothing of how many or where: what a perfect label cascade could do."""

    def yes_no_margin(self, picture, question):
        return 0.0 if "left of" in question else super().yes_no_margin(picture, question)

    def answer(self, picture, question):
        return "1" if question.startswith("How many") else super().answer(picture, question)

    def score(self, picture, prompt, choices):
        return np.zeros(len(choices))


def card(items, model, cascade=None) -> dict[tuple[str, str], object]:
    outcomes = image.collect(model, items, cascade=cascade)
    return {(row.section, row.name): row for row in image.rows(items, outcomes, resamples=200)}


@pytest.fixture(scope="module")
def oracle(items):
    return card(items, Oracle(items), Labels(items))


@pytest.fixture(scope="module")
def cheater(items):
    return card(items, Cheater(items))


def test_oracle_is_right_everywhere(oracle):
    assert len(oracle) == len(image.plans())
    for name, row in oracle.items():
        best = 0.0 if row.lower_is_better else 1.0
        if "CIDEr" not in name[1]:
            assert row.scores["model"].value == best, name


def test_what_the_oracle_gets_blind_or_shuffled_is_no_better_than_chance(oracle):
    for name, row in oracle.items():
        if row.chance is None or row.lower_is_better:
            continue
        assert row.scores["blind"].value <= max(row.chance, row.majority) + 1e-9, name
        if "AUC" in name[1] or "area" in name[1]:
            assert row.scores["shuffled"].value < 0.75, name


def test_cheater_has_nothing_where_the_question_is_balanced(cheater):
    for name, row in cheater.items():
        model, blind = row.scores["model"], row.scores["blind"]
        assert model.value == blind.value or (math.isnan(model.value) and math.isnan(blind.value)), name
        if "2x2" in name[1]:
            assert model.value == 0, name
    scene = cheater["scenes of unseen objects", "yes/no, area under the curve"]
    assert scene.scores["model"].value < 0.65, "each word is asked as often with no as with yes"


def test_labels_win_what_labels_can_and_nothing_else(oracle):
    section = "scenes of unseen objects"
    for what in (
        "yes/no, area under the curve",
        "2x2 groups, which thing, all four right",
        "caption names both of two things",
    ):
        assert oracle[section, what].scores["cascade"].value == 1.0
        assert oracle[section, what].difference.value == 0.0
    for what in ("left or right, right choice", "2x2 groups, left and right, all four right", "count of 1 to 5, exact"):
        row = oracle[section, what]
        assert row.difference.low > 0, "beyond the cascade, and surely so"
        assert row.p is not None and row.p < 0.01
    assert oracle[section, "left or right, AUC"].scores["cascade"].value == 0.5
    assert oracle[section, "2x2 groups, left and right, all four ranked right"].scores["cascade"].value == 0


def test_additive_model_ranks_no_group(items):
    class Additive(Planted):
        def _noise(self, thing):
            return np.random.default_rng(abs(hash(thing)) % 2**32).normal()

        def yes_no_margin(self, picture, question):
            return float(self._noise(picture) + self._noise(question))

        def answer(self, picture, question):
            return "I cannot tell."

        def caption(self, picture):
            return ""

        def score(self, picture, prompt, choices):
            return np.zeros(len(choices))

    for name, row in card(items, Additive(items)).items():
        if "2x2" in name[1]:
            assert row.scores["model"].value == 0, name
        if name[1].endswith("written answer"):
            assert row.scores["model"].value == 0, "an answer that says neither is wrong"


def test_no_answer_reaches_the_model(items):
    handed = []

    class Spy(Oracle):
        def examine(self, questions):
            handed.extend(questions)
            return super().examine(questions)

    image.collect(Spy(items), items[:40])
    known = {(item.task, item.question, item.choices, item.generate) for item in items[:40]}
    assert handed and all((q.task, q.text, q.choices, q.generate) in known for q in handed)
    assert {f.name for f in dataclasses.fields(handed[0])} == {"task", "image", "text", "choices", "generate"}


def test_shuffle_gives_another_picture_of_the_same_kind(items):
    others = image.shuffled(items)
    kinds = {(item.meta["kind"], item.image) for item in items}
    for item, other in zip(items, others):
        assert other != item.image
        assert (item.meta["kind"], other) in kinds
    per_picture = {}
    for item, other in zip(items, others):
        assert per_picture.setdefault((item.meta["kind"], item.picture), other) == other


def test_collect_asks_everything_once_and_picture_by_picture(items):
    asked = []

    class Counting(Cheater):
        def examine(self, questions):
            asked.extend(questions)
            return super().examine(questions)

    told = []
    image.collect(Counting(items), items, progress=lambda done, total: told.append((done, total)))
    different = Counter((q.task, q.image, q.text, q.choices, q.generate) for q in asked)
    assert set(different.values()) == {1}
    blind = {(item.task, item.question, item.choices, item.generate) for item in items}
    assert sum(q.image is None for q in asked) == len(blind) < len(items)
    captions = [q for q in asked if q.task == "caption" and q.image is not None]
    assert len(captions) == sum(item.task == "caption" for item in items), "shuffled captions are other pictures' own"
    changes = sum(one.image != other.image for one, other in itertools.pairwise(asked))
    assert changes == len({q.image for q in asked}) - 1
    assert told[-1] == (len(asked), len(asked)) and [done for done, _ in told] == sorted(done for done, _ in told)


# Scenes ---------------------------------------------------------------------------------------------------------------


def test_scenes_repeat_themselves(catalogue):
    sizes = scenes.Sizes(4, 3, 2, 5, 2, 2)
    first, again = (scenes.scene_items(catalogue, set(), sizes, seed=9) for _ in range(2))
    assert [(i.id, i.image, i.answer) for i in first] == [(i.id, i.image, i.answer) for i in again]
    other = scenes.scene_items(catalogue, set(), sizes, seed=10)
    assert [i.image for i in first] != [i.image for i in other]
    assert len({i.id for i in first}) == len(first)


def test_scene_words_are_asked_as_often_with_no_as_with_yes(items):
    for kind in ("scene", "scene-several"):
        asked = [i for i in items if i.task == "yesno" and i.meta["kind"] == kind]
        yes, no = (Counter(i.meta["word"] for i in asked if i.answer == a) for a in ("yes", "no"))
        assert not no - yes, "no word is asked with no more often than with yes"
        assert sum(yes.values()) - sum(no.values()) <= 0.15 * len(asked)


def test_mirrored_groups_exchange_the_two_things(items):
    groups = defaultdict(dict)
    for item in items:
        if item.meta["kind"] == "scene-side-group":
            groups[item.meta["group"]][item.meta["cell"]] = item
    assert groups
    for cells in groups.values():
        assert cells[0, 0].image == cells[0, 1].image != cells[1, 0].image
        assert cells[0, 0].question == cells[1, 0].question
        assert [cells[c].answer for c in ((0, 0), (0, 1), (1, 0), (1, 1))] == ["yes", "no", "no", "yes"]
        left = np.asarray(Image.open(io.BytesIO(cells[0, 0].image)))
        right = np.asarray(Image.open(io.BytesIO(cells[1, 0].image)))
        assert (left[:, 150:170] == right[:, 150:170]).mean() > 0.7, "the same ground"


def test_counts_hold_what_they_say(items):
    counts = [i for i in items if i.task == "count"]
    assert Counter(i.answer for i in counts) == {str(n): 4 for n in range(1, 6)}
    assert all(i.question.startswith("How many ") for i in counts)


def test_a_ground_neither_shows_nor_is_denied_what_is_asked(catalogue, tmp_path, monkeypatch):
    """A photograph that may show dogs and cars is no ground for them, and nothing about either is asked on it."""
    from sensorium.training.data import scenes as drawing

    Image.new("RGB", (300, 300), (255, 0, 255)).save(tmp_path / "ground.png")
    labels = {"present": ("dog", "animal"), "unsure": ("car",), "asked_yes": (), "asked_no": ()}
    photo = photos.Photo("ground", "part", "ground.png", "", "test", "A dog.", ("dog",), **labels)
    ground = scenes.ground_items([photo], {"ground": tmp_path / "ground.png"})
    monkeypatch.setattr(drawing, "degrade", lambda canvas, rng: canvas)
    made = scenes.scene_items(catalogue, set(), scenes.Sizes(60, 30, 30, 40, 30, 20), seed=3, grounds=ground)
    on_it = [item for item in made if _corner(item.image) == (255, 0, 255)]
    asked = {item.meta["word"] for item in on_it if item.task == "yesno" and item.answer == "no"}
    placed = {item.meta["word"] for item in on_it if item.task in ("count", "choice")}
    assert len(on_it) > len(made) / 5
    assert {"cat", "bus", "apple"} <= asked | placed
    assert not asked & {"dog", "animal", "car", "vehicle"}
    assert not placed & {"dog", "car"}


def _corner(data: bytes) -> tuple[int, int, int]:
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((1, 1))


def test_grounds_are_photographs_of_the_evaluation():
    assert len({photo.id for photo in photos.ground_photos()}) == len(photos._table()["grounds"]) == 14


@pytest.mark.parametrize(
    ("noun", "known"),
    [
        ("cat", True),
        ("tabby", True),
        ("banana", True),
        ("bus", True),
        ("giraffe", False),
        ("person", False),
        ("tree", False),
    ],
)
def test_encoder_knows_its_labels(noun, known):
    assert scenes.encoder_knows(noun) is known


# Photographs ----------------------------------------------------------------------------------------------------------


def test_photo_labels_are_consistent():
    everything = photos.photos()
    assert len(everything) >= 80
    assert len({p.id for p in everything}) == len({p.sha256 for p in everything}) == len(everything)
    for photo in everything:
        assert set(photo.asked_yes) <= set(photo.present), photo.id
        assert set(photo.nouns) <= set(photo.present), photo.id
        assert not set(photo.asked_no) & {*photo.present, *photo.unsure}, photo.id
        assert not set(photo.present) & set(photo.unsure), photo.id
        assert len(set(photo.asked_yes + photo.asked_no)) == len(photo.asked_yes + photo.asked_no), photo.id
    for split in ("dev", "test"):
        chosen = photos.photos(split)
        yes, no = (sum(len(getattr(p, f"asked_{a}")) for p in chosen) for a in ("yes", "no"))
        assert 0.55 <= no / (yes + no) <= 0.61


def test_no_package_serves_both_training_and_evaluation():
    from importlib import resources

    table = resources.files("sensorium.training.data").joinpath("packages.tsv").read_text(encoding="utf-8")
    trained = {line.split("\t")[1] for line in table.splitlines() if line and not line.startswith("#")}

    def name(source: str) -> str:
        return re.split(r"==|(?<=[^:])@|=", source)[0]

    assert len(trained) > 10
    evaluated = {
        part["source"]
        for part in yaml.safe_load(resources.files("sensorium.evaluation").joinpath("photos.yaml").read_text())[
            "parts"
        ].values()
    }
    assert not {name(source) for source in trained} & {name(source) for source in evaluated}


def test_no_photograph_looks_like_a_training_picture(tmp_path, monkeypatch):
    """By difference hash, mirror images included; needs the photographs and the catalogue in the cache."""
    from sensorium import hub
    from sensorium.training.data import catalogue
    from sensorium.training.data.pictures import dhash, prepare

    directory = hub.cache_dir("training")
    catalogues = sorted(directory.glob("catalogue*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not catalogues or not (directory / "prepared.json").is_file():
        pytest.skip("there is no catalogue of training pictures in the cache")
    rows = [json.loads(line) for line in catalogues[-1].read_text().splitlines()]
    trained = {row["path"]: row["key"] for row in rows if row["style"] == "photo" and not row["alpha"]}
    hashes = {row[0]: row[2] for row in json.loads((directory / "prepared.json").read_text()).values() if row}
    keys = [key for path, key in trained.items() if path in hashes]
    known = np.array([hashes[path] for path in trained if path in hashes], np.uint64)
    assert len(known) > 100
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    files = photos.fetch_photos(photos.photos(), missing=lambda note: None)
    if not files:
        pytest.skip("the photographs are not in the cache")
    alike = []
    for name, path in files.items():
        ready = prepare(path, tmp_path)
        assert ready is not None, name
        for seen in dhash(ready[1].convert("RGB")):
            near = catalogue.near(known, np.array([seen], np.uint64))
            alike += [(name, key) for key, close in zip(keys, near) if close]
    assert not alike, "leave these photographs out of photos.yaml, or these pictures out of training"


def test_words_alone_say_little_about_photographs():
    for split in ("dev", "test"):
        count = defaultdict(Counter)
        for photo in photos.photos(split):
            for word in photo.asked_yes:
                count[word]["yes"] += 1
            for word in photo.asked_no:
                count[word]["no"] += 1
        right = sum(max(c.values()) for c in count.values())
        assert right / sum(sum(c.values()) for c in count.values()) < 0.63, "even fitted on its own answers"


@pytest.mark.parametrize(
    ("word", "question"),
    [
        ("cat", "Is there a cat in this picture? Answer yes or no."),
        ("apple", "Is there an apple in this picture? Answer yes or no."),
        ("water", "Is there water in this picture? Answer yes or no."),
        ("glasses", "Is there a pair of glasses in this picture? Answer yes or no."),
    ],
)
def test_ask_about(word, question):
    assert photos.ask_about(word) == question


def test_photo_pairs_are_true_groups():
    for split in ("dev", "test"):
        found = photos.pairs(photos.photos(split))
        assert len(found) >= 10
        assert len({p.id for pair in found for p in pair[:2]}) == 2 * len(found)
        for first, second, one, other in found:
            assert one in first.present and other in second.present
            assert photos.absent(second, one) and photos.absent(first, other)


def test_photo_of_another_digest_is_refused(tmp_path, monkeypatch):
    photo = photos.photos("dev")[0]
    (tmp_path / photo.file).parent.mkdir(parents=True)
    (tmp_path / photo.file).write_bytes(b"another picture")
    monkeypatch.setattr(photos.hub, "fetch_tree", lambda *args, **kwargs: tmp_path)
    with pytest.raises(photos.SensoriumError, match="not the photograph"):
        photos.fetch_photos([photo])


def test_part_that_cannot_be_had_is_noted(monkeypatch):
    def fail(*args, **kwargs):
        raise photos.SensoriumError("there is no network.")

    monkeypatch.setattr(photos.hub, "fetch_tree", fail)
    notes = []
    assert photos.fetch_photos(photos.photos("dev"), missing=notes.append) == {}
    assert notes and all("left out" in note for note in notes)
    with pytest.raises(photos.SensoriumError):
        photos.fetch_photos(photos.photos("dev"))


# The table ------------------------------------------------------------------------------------------------------------


def test_scorecard_shows_failing_rows_and_is_plain_json(items, tmp_path):
    outcomes = image.collect(Cheater(items), items, cascade=Labels(items))
    made = Scorecard("image", "cheater", image.rows(items, outcomes, resamples=50), {"split": "dev"}, ["A note."])
    path = made.save(tmp_path)
    stored = json.loads(path.read_text())
    assert len(stored["rows"]) == len(image.plans())
    row = next(r for r in stored["rows"] if r["name"] == "2x2 groups, which thing, all four right")
    assert (
        row["model"] == 0 and row["cascade"] == 1 and row["chance"] == 0.0625 and row["beyond_cascade"]["value"] == -1
    )
    text = (tmp_path / "image.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("|  |"))
    for column in ("chance", "majority", "blind", "shuffled", "cascade", "model", "95 %", "n"):
        assert f"| {column} " in header
    assert "A note." in text
    assert all(line.count("|") == header.count("|") for line in text.splitlines() if line.startswith("|"))
    stream = io.StringIO()
    run._show(made, stream)
    assert "which thing" in stream.getvalue()


def test_unknown_suite_and_catalogue_are_usage_errors(tmp_path):
    with pytest.raises(run.UsageError, match="unknown"):
        run.evaluate(["smell"])
    with pytest.raises(run.UsageError, match="no catalogue"):
        run._scene_items(tmp_path / "missing.jsonl", None, [])


def test_without_a_catalogue_a_note_says_why_and_the_photographs_stay(monkeypatch):
    from sensorium.training.data import catalogue

    def fail(**options):
        raise run.SensoriumError("Nothing can be fetched.")

    monkeypatch.setattr(catalogue, "registry_catalogue", fail)
    notes = []
    assert run._scene_items(None, None, notes) == []
    assert notes == ["The scenes are left out, and the photographs alone are evaluated: Nothing can be fetched."]


def test_no_scenes_asks_for_no_catalogue(monkeypatch):
    monkeypatch.setattr(run, "_photo_items", lambda *given: [])
    monkeypatch.setattr(run, "_scene_items", lambda *given: pytest.fail("asked for the catalogue"))
    with pytest.raises(run.SensoriumError, match="No picture"):
        run.image_suite(None, with_scenes=False)


def test_incomplete_groups_are_left_out():
    item = EvalItem("a", "a", b"", "yesno", "?", "yes", meta={"group": "g", "cell": (0, 0)})
    assert math.isnan(measures.group_right([item], [Outcome(margin=1.0)]).estimate().value)


def test_a_tie_between_choices_is_wrong():
    item = EvalItem("a", "a", b"", "choice", "?", "Left.", ("Left.", "Right."))
    assert measures.choice_right([item], [Outcome(scores=(1.0, 1.0))]).estimate().value == 0
    assert measures.choice_right([item], [Outcome(scores=(1.0, 0.5))]).estimate().value == 1


def test_a_row_without_the_model_counts_what_it_has():
    from sensorium.evaluation.intervals import Estimate
    from sensorium.evaluation.scorecard import Row

    floor, model = Estimate(0.1, 0.0, 0.2, 40, 7), Estimate(0.5, 0.4, 0.6, 24, 24)
    alone = Row("people", "errors", None, None, {"people": floor}).to_dict()
    assert (alone["n"], alone["clusters"], alone["ci95"]) == (40, 7, None)
    both = Row("people", "errors", None, None, {"cascade": floor, "model": model}).to_dict()
    assert (both["n"], both["clusters"]) == (24, 24)
