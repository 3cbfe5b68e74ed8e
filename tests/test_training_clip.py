"""Training of heads: captions and what they say, pairs from files, the task, the run, export parity, bad recipes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

import tiny_clip
import tiny_training
from sensorium.cli import run
from sensorium.errors import SensoriumError, UsageError

torch = pytest.importorskip("torch")

from sensorium.training.clip_features import encode_texts, pool  # noqa: E402
from sensorium.training.clip_heads import ImageHead, TextHead  # noqa: E402
from sensorium.training.clip_pairs import Pair, Unsure, caption, read_pairs, scene_pairs, true_words  # noqa: E402
from sensorium.training.clip_recipe import ClipRecipe, ClipTrain, HeadRecipe  # noqa: E402
from sensorium.training.clip_run import read_recipe, train_clip  # noqa: E402
from sensorium.training.clip_sides import Kept  # noqa: E402
from sensorium.training.clip_task import ClipTask  # noqa: E402
from sensorium.training.contrastive import Temperature  # noqa: E402
from sensorium.two_tower import TwoTower  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "clip-home"))


def thing(name, colour="", also=(), never=()):
    attributes = {"color": colour} if colour else {}
    return {"name": name, "also": list(also), "never": list(never), "attributes": attributes}


def scene(*objects, box="", maybe=()):
    return {"kind": "several", "box": box, "photo": False, "maybe": list(maybe), "objects": list(objects)}


# Captions and what they say
# ----------------------------------------------------------------------------------------------------------------------


def many(labels, n=200):
    return [caption(labels, np.random.default_rng(i)) for i in range(n)]


def test_captions_say_what_is_there_and_nothing_else():
    drawn = many(scene(thing("apple", "red", ["fruit"]), thing("dog"), thing("dog"), box="crate"))
    texts = {text for text, _ in drawn}
    assert any("red apple" in t for t in texts) and any("an apple" in t for t in texts)
    assert all("two dogs" in t for t in texts) and all(says == {"apple", "dog"} for _, says in drawn)
    assert any(t.endswith("in a crate") for t in texts) and any(t.startswith("a photo of") for t in texts)
    single = many(scene(thing("apple", also=["fruit"])))
    assert {says for _, says in single} == {frozenset({"apple"}), frozenset({"fruit"})}
    assert caption(scene(), np.random.default_rng(0)) is None
    assert caption(scene(thing("background")), np.random.default_rng(0)) is None


def test_pairs_are_drawn_from_the_seed():
    scenes = [scene(thing("apple", "red")), scene(), scene(thing("dog"), thing("cat"))]
    first = scene_pairs(scenes, 2, seed=3)
    assert first == scene_pairs(scenes, 2, seed=3)
    assert [pair.picture for pair in first] == [0, 0, 2, 2]


def test_a_text_that_may_be_true_of_another_picture_is_no_wrong_answer():
    scenes = [
        scene(thing("apple", also=["fruit"])),
        scene(thing("apple"), thing("dog", also=["animal"])),
        scene(thing("cat", also=["animal"], never=["kitten"])),
        scene(thing("chair"), maybe=["tree"]),
    ]
    said = [{"apple"}, {"apple", "dog"}, {"animal"}, {"tree"}]
    pairs = [Pair(i, str(i), frozenset(w), true_words(s)) for i, (s, w) in enumerate(zip(scenes, said))]
    pairs.append(Pair(4, "my own", frozenset({"=my own"}), frozenset({"=my own"})))
    unsure = Unsure(pairs)(np.arange(5))
    wanted = np.array(  # [picture, text]
        [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], bool
    )
    np.testing.assert_array_equal(unsure[:, 0], wanted)
    np.testing.assert_array_equal(unsure[:, 1], wanted.T)
    np.testing.assert_array_equal(Unsure(pairs)(np.arange(5), 2, 2), unsure[2:4])


# Pairs of one's own
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A folder of 24 pictures in folders named after their colours."""
    random = np.random.default_rng(0)
    for name, colour in (("red apple", (210, 30, 30)), ("green tree", (30, 170, 40)), ("blue car", (30, 40, 220))):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(random.normal(colour, 25, (12, 12, 3)), 0, 255).astype(np.uint8)
            Pillow.fromarray(pixels).save(tmp_path / "own" / name / f"{i}.png")
    return tmp_path / "own"


def test_pairs_from_a_folder_and_from_lines(own, tmp_path):
    (own / "red apple" / "3.txt").write_text("a shiny\n red  apple ")
    pairs = read_pairs(own)
    assert len(pairs) == 24 and {p.text for p in pairs} == {"red apple", "green tree", "blue car", "a shiny red apple"}
    lines = tmp_path / "pairs.jsonl"
    rows = [{"image": "own/red apple/1.png", "text": "one"}, {"image": "own/blue car/2.png", "caption": "two"}]
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert [(p.picture, p.text) for p in read_pairs(lines)] == [
        (tmp_path / "own/red apple/1.png", "one"),
        (tmp_path / "own/blue car/2.png", "two"),
    ]


@pytest.mark.parametrize(
    "line",
    ["x", "{}", "[]", '{"image": "a.png"}', '{"image": 3, "text": "a"}', '{"image": "a", "text": " "}', "[" * 9999],
)
def test_lines_that_are_no_pairs(tmp_path, line):
    (tmp_path / "p.jsonl").write_text('{"image": "a.png", "text": "a"}\n' + line + "\n")
    with pytest.raises(SensoriumError, match="line 2") as error:
        read_pairs(tmp_path / "p.jsonl")
    assert "\n" not in str(error.value)


def test_no_pairs(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    for place, kind in (("empty", SensoriumError), ("bytes.jsonl", SensoriumError), ("nowhere", UsageError)):
        with pytest.raises(kind):
            read_pairs(tmp_path / place)


# Features, heads, task
# ----------------------------------------------------------------------------------------------------------------------


def test_texts_are_encoded_once(tmp_path):
    class Counting:
        def __init__(self, spec):
            self.spec, self.asked = spec, 0

        def encode_text(self, texts):
            self.asked += len(texts)
            return np.array([[len(t)] * self.spec.dim for t in texts], np.float32)

    spec = TwoTower(tiny_clip.write(tmp_path / "t")).text_encoder.get().spec
    encoder = Counting(spec)
    first = encode_texts(["b", "aaa", "cc"], encoder)
    again = encode_texts(["b", "aaa", "cc"], encoder)
    np.testing.assert_array_equal(first, again)
    assert first[:, 0].tolist() == [1, 3, 2] and encoder.asked == 3


@pytest.mark.parametrize("concepts", [False, True])
@pytest.mark.parametrize("depth", [0, 2])
def test_exported_heads_give_what_torch_gives(tmp_path, concepts, depth):
    from sensorium.projectors.runtime import Projector
    from sensorium.training.export import export_projector

    torch.manual_seed(0)
    shape, start = HeadRecipe(depth=depth, hidden=12), {}
    if concepts:
        start = {"directions": (torch.randn(9, 10), torch.randn(9)), "meanings": torch.randn(9, 16)}
    image = ImageHead(10, 16, shape, **start).half().float()  # the file holds half precision
    text = TextHead(16, 16, shape, torch.randn(16) if concepts else None).half().float()
    for name, head, cells, dim in (("image", image, 6, 10), ("text", text, 1, 16)):
        export_projector(head, cells, dim, tmp_path, name)
        features = np.random.default_rng(1).random((3, cells, dim)).astype(np.float32)
        runner = Projector(tmp_path / f"{name}.onnx")
        with torch.no_grad():
            wanted = head(torch.from_numpy(features)).numpy()
        np.testing.assert_allclose(runner(features), wanted, atol=1e-5)
        assert (runner.tokens, runner.dim) == (1, 16)
        if name == "image":
            with torch.no_grad():
                pooled = head.embed(torch.from_numpy(pool(features))).numpy()
            np.testing.assert_allclose(pooled, wanted[:, 0], atol=1e-5)


def task(world=1, rank=0, **options):
    random = np.random.default_rng(0)
    pairs = [Pair(i, f"t{i}", frozenset({str(i % 5)}), frozenset({str(i % 5)})) for i in range(20)]
    torch.manual_seed(0)
    plan = ClipTrain(**{"steps": 10, "batch": 8, "processes": world, **options})
    heads = (ImageHead(4, 8, HeadRecipe()), TextHead(6, 8, HeadRecipe()), Temperature("clip"))
    pictures, texts = random.random((20, 8)).astype(np.float16), random.random((20, 6)).astype(np.float16)
    return ClipTask(*heads, Kept(pictures), Kept(texts), pairs, np.arange(20), plan, rank, world)


def test_a_step_depends_on_the_step_alone_and_processes_share_it():
    whole = list(task().batches(0, 5))
    for one, other in zip(whole[3:], task().batches(3, 5)):
        torch.testing.assert_close(one.pictures, other.pictures)
    halves = [list(task(2, rank).batches(0, 5)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves):
        for part in ("pictures", "texts", "unsure"):
            torch.testing.assert_close(getattr(batch, part), torch.cat((getattr(first, part), getattr(second, part))))
    assert whole[0].unsure.shape == (8, 2, 8)


def test_an_epoch_shows_every_pair_once():
    seen = torch.cat([batch.texts for batch in task(batch=10).batches(0, 2)])
    assert len(torch.unique(seen, dim=0)) == 20


def test_the_scale_is_clamped_after_a_step():
    made = task()
    with torch.no_grad():
        made.temperature.logit_scale.fill_(7.0)
    made.stepped()
    assert float(made.temperature.logit_scale.detach().exp()) == pytest.approx(100)


# The whole run
# ----------------------------------------------------------------------------------------------------------------------


def recipe(tmp_path, **changes):
    base = tmp_path / "base"
    if not base.is_dir():
        tiny_clip.write(base, heads=False)
    plan = {
        "kind": "clip",
        "name": "tiny-clip",
        "composition": str(base),
        "output": str(tmp_path / "out"),
        "heads": {"dim": 16},
        "data": {"pairs": str(tmp_path / "own")},
        "train": {
            "steps": 60,
            "batch": 12,
            "learning_rate": 0.01,
            "warmup": 2,
            "log_every": 20,
            "checkpoint_every": 30,
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        at = plan
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plan))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_training_from_a_folder_teaches_the_colours(own, tmp_path, loss, capfd):
    (own / "red apple" / "broken.png").write_bytes(b"no picture")
    place = recipe(tmp_path, loss=loss, train__chunk=5)
    assert run(["train", str(place), "--set", "train.seed=1"]) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'out' / 'composition'}\n" and "1 of 25 pictures" in err
    model = TwoTower(tmp_path / "out" / "composition")
    for name in ("red apple", "green tree", "blue car"):
        texts = model.embed_texts(["red apple", "green tree", "blue car"])
        best = int(np.argmax(texts @ model.embed(own / name / "0.png")))
        assert ["red apple", "green tree", "blue car"][best] == name
    manifest = json.loads((tmp_path / "out" / "composition" / "manifest.json").read_text())
    assert manifest["recipe"]["train"]["seed"] == 1 and manifest["run"]["steps"] == 60
    assert run(["search", str(own), "a blue car", "--top", "1", "--model", str(tmp_path / "out" / "composition")]) == 0
    assert "blue car" in capfd.readouterr().out


def test_training_from_scenes_with_a_random_start(tmp_path):
    catalogue = tiny_training.write_catalogue(tmp_path / "pictures")
    place = recipe(tmp_path, data={"catalogue": str(catalogue), "scenes": 40, "mix": {"single": 1.0}}, train__steps=3)
    directory = train_clip(place)
    assert TwoTower(directory).embed(text="an apple").shape == (16,)


def test_two_processes_log_the_losses_of_one(own, tmp_path):
    losses = []
    for processes in (1, 2):
        output = tmp_path / f"by-{processes}"
        place = recipe(tmp_path, output=str(output), train__processes=processes, train__steps=6, train__log_every=1)
        train_clip(place)
        losses.append([json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()])
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(own, tmp_path, capfd):
    whole = train_clip(recipe(tmp_path, train__dropout=0.2))
    place = recipe(tmp_path, output=str(tmp_path / "parts"), train__dropout=0.2)
    train_clip(place, ["train.steps=30"])
    with pytest.raises(UsageError, match="--resume"):
        train_clip(place)
    with pytest.raises(UsageError, match=r"begun with train\.steps=30, and .* says 60; add --set train\.steps=30 "):
        train_clip(place, resume=tmp_path / "parts")
    assert "steps: 30" in (tmp_path / "parts" / "recipe.yaml").read_text()
    train_clip(place, ["train.steps=60"], resume=tmp_path / "parts")
    assert "had ended already" not in capfd.readouterr().err
    train_clip(place, resume=tmp_path / "parts")
    assert "had ended already, behind step 60, so nothing was trained" in capfd.readouterr().err
    with pytest.raises(SensoriumError, match="batch"):
        train_clip(place, ["train.batch=6"], resume=tmp_path / "parts")
    assert "batch: 12" in (tmp_path / "parts" / "recipe.yaml").read_text()  # what was refused leaves no trace
    with pytest.raises(UsageError, match="no output directory"):
        train_clip(place, resume=tmp_path / "nowhere")
    assert TwoTower(tmp_path / "parts" / "composition").embed(text="a").shape == TwoTower(whole).embed(text="a").shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "clop"}, "line .*loss"),
        ({"train__steps": 0}, "train.steps"),
        ({"train__stepz": 1}, "did you mean 'steps'"),
        ({"train__batch": 7, "train__processes": 2}, "multiple of processes"),
        ({"data": {}}, "neither scenes nor pairs"),
        ({"data": {"scenes": 3, "mix": {"single": 0}}}, "zero"),
        ({"heads__start": "concepts"}, "no classifier"),
        ({"data__pairs": "nowhere"}, "neither a folder"),
        ({"composition": "nowhere"}, "no two-tower model"),
        ({"output": "/proc/none"}, "cannot be written"),
    ],
)
def test_bad_recipes_are_one_sentence(own, tmp_path, change, words, capsys):
    assert run(["train", str(recipe(tmp_path, **change))]) in (1, 2)
    err = capsys.readouterr().err
    import re

    assert re.search(words, err.splitlines()[-1]) and "Traceback" not in err


def test_the_shipped_recipe_is_valid_and_shares_the_store_of_the_other():
    from pathlib import Path

    recipes = Path(__file__).parents[1] / "recipes"
    plan = read_recipe(recipes / "mini-clip.yaml")
    other = yaml.safe_load((recipes / "mini-image.yaml").read_text())
    data = other.get("data") or other["stages"][0]["data"]
    assert (plan.data.scenes, plan.data.seed) == (data["scenes"], data["seed"])
    assert {k: float(v) for k, v in plan.data.mix.items()} == {k: float(v) for k, v in data["mix"].items()}
    page = (recipes.parent / "docs" / "clip.md").read_text(encoding="utf-8")
    ClipRecipe.model_validate(yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0]))
    for wrong in ("x", "=3", "train.steps.more=3"):
        with pytest.raises(UsageError):
            read_recipe(recipes / "mini-clip.yaml", [wrong])
    with pytest.raises(UsageError, match=r"^--set 'loss=foo': loss is 'foo'"):  # and not the recipe's own line
        read_recipe(recipes / "mini-clip.yaml", ["train.steps=3", "loss=foo"])
