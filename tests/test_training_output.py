"""The output directory of a run: one run at a time, resumed as it was begun."""

from __future__ import annotations

import pytest
import yaml

import tiny
import tiny_training
from sensorium.errors import SensoriumError, UsageError
from sensorium.training import output as places
from sensorium.training.recipe import load_recipe

FILE = "checkpoint.safetensors"
STAGES = [{"name": "align", "train": {"steps": 5}}, {"name": "instruct"}]


@pytest.fixture
def begun(tmp_path):
    """A recipe, and the output of a run that was begun with changes of it."""
    model, catalogue = tiny.write(tmp_path / "model"), tiny_training.write_catalogue(tmp_path / "pictures", names=2)

    def begin(*overrides, **changes):
        plan = tiny_training.recipe(model, catalogue, tmp_path / "out", **changes)
        path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
        (tmp_path / "out").mkdir(exist_ok=True)
        places.keep_recipe(tmp_path / "out", load_recipe(path, overrides).dump())
        return path

    return begin


def resumed(path, *overrides):
    places.check_same(path.parent / "out", load_recipe(path, overrides), path, overrides)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ((), {}),
        (("train.steps=60",), {}),
        (("train.steps=60", "install=there"), {"stages": STAGES}),
        (("train.rows=null", "train.batch_tokens=2048"), {}),
        (("stages.align.train.steps=9", "stages.1.data.seed=3"), {"stages": STAGES}),
        (("lora={rank: 4}",), {}),
    ],
)
def test_the_same_recipe_and_changes_go_on(begun, overrides, changes):
    path = begun(*overrides, **changes)
    resumed(path, *overrides)
    resumed(path, *overrides, "output=elsewhere")


@pytest.mark.parametrize(
    ("overrides", "now", "said"),
    [
        (("train.steps=60",), (), r"begun with train\.steps=60, and .*recipe\.yaml says 6; add --set train\.steps=60 "),
        (("install=a b",), ("train.steps=6",), r"install=a b, and .* says null; add --set 'install=a b' "),
        (("train.steps=9", "train.seed=3"), ("train.seed=3",), r"train\.steps=9"),
        (("train.steps=9", "train.seed=3"), (), r"says 6 \(1 more differ\)"),
        ((), ("train.warmup=1", "train.step_=1"), None),
    ],
)
def test_what_is_forgotten_is_refused_and_named(begun, overrides, now, said):
    path = begun(*overrides)
    with pytest.raises(UsageError, match=said or "did you mean 'steps'"):
        resumed(path, *now)


def test_a_change_of_one_stage_does_not_stand_for_the_other(begun):
    path = begun(stages=STAGES)
    resumed(path, "stages.align.train.steps=7")
    resumed(path, "train.log_every=5")  # reaches into both
    path = begun("train.log_every=5", stages=STAGES)
    with pytest.raises(UsageError, match=r"train\.log_every=5, and .* says 1 \(2 more differ\)"):
        resumed(path, "stages.align.train.steps=7")
    with pytest.raises(UsageError, match=r"stages\.instruct\.train\.log_every=5|train\.log_every=5"):
        resumed(path, "stages.align.train.log_every=1")


def test_a_damaged_recipe_leaves_the_word_to_the_checkpoint(begun):
    path = begun("train.steps=60")
    (path.parent / "out" / "recipe.yaml").write_text("name: x")
    resumed(path)


@pytest.mark.parametrize("stages", [(), STAGES])
def test_the_resolved_recipe_is_shown_with_what_the_file_leaves_out(begun, capsys, stages):
    changes = {"stages": stages} if stages else {}
    plan = load_recipe(begun(lora=None, **changes), ["train.rows=8"])
    places.show_recipe(begun().parent / "out", plan)
    title, _, text = capsys.readouterr().err.partition("\n")
    assert title.startswith("The recipe, resolved (") and title.endswith("out/recipe.yaml):")
    shown = yaml.safe_load(text)
    train = (shown["stages"][1] if stages else shown)["train"]
    assert train["rows"] == 8 and train["schedule"] == "cosine" and train["clip"] == 1.0
    assert train["learning_rate"] == {"projector": 0.003, "concepts": 3e-4}  # nothing else learns
    assert not {"lora", "tokens", "install"} & set(shown)
    assert ("train" in shown) is not bool(stages)
    assert not stages or shown["stages"][0]["train"]["steps"] == 5


def test_two_runs_do_not_share_an_output(tmp_path):
    with places.held(tmp_path / "out"):
        with pytest.raises(SensoriumError, match="Another run is writing into"), places.held(tmp_path / "out"):
            pass
        with places.held(tmp_path / "out", writes=False):  # another rank of a launcher
            pass
    with places.held(tmp_path / "out"):
        pass


def test_an_output_is_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for given in (tmp_path / "file", tmp_path / "file" / "deep" / "out", tmp_path / "nowhere", "/dev/null"):
        with pytest.raises(UsageError, match=r"is no directory \(.*; choose another with --set output=DIR"):
            places.output_of(str(given), None, [FILE])
    assert places.output_of(str(tmp_path / "a" / "b"), None, [FILE]) == tmp_path / "a" / "b"
    for path, said in ((tmp_path / "file", "is no directory"), (tmp_path / "file" / "out", "cannot be written")):
        with pytest.raises(SensoriumError, match=said), places.held(path):
            pass


def test_the_place_of_a_run_is_expanded_and_free(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.output_of("~/x", None, [FILE]) == tmp_path / "x"
    assert str(places.output_of("~nobody-has-this/x", None, [FILE])) == "~nobody-has-this/x"
    with pytest.raises(UsageError, match="no output directory"):
        places.output_of("other", tmp_path / "x", [FILE])
    (tmp_path / "x" / "align").mkdir(parents=True)
    (tmp_path / "x" / "recipe.yaml").write_text("")
    with pytest.raises(SensoriumError, match="holds no checkpoint"):
        places.output_of("other", tmp_path / "x", [FILE])
    (tmp_path / "x" / "align" / FILE).write_text("")
    assert places.output_of("other", tmp_path / "x", [f"align/{FILE}"]) == tmp_path / "x"
    with pytest.raises(UsageError, match="continue it with --resume"):
        places.output_of("~/x", None, [f"align/{FILE}"])


def test_an_interrupt_tells_the_whole_command(tmp_path, capsys):
    recipe, changes = tmp_path / "r.yaml", ["train.steps=60", "stages=[{name: a}]"]
    said = f"sensorium train {recipe} --set train.steps=60 --set 'stages=[{{name: a}}]' --resume {tmp_path}\n"
    for there in (False, True):
        with pytest.raises(KeyboardInterrupt), places.going_on(recipe, changes, tmp_path, [FILE]):
            raise KeyboardInterrupt
        assert capsys.readouterr().err == (f"Interrupted; continue with: {said}" if there else "")
        (tmp_path / FILE).write_text("")
