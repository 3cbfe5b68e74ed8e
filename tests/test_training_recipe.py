"""Recipes: whatever is wrong with one is said, with the line and the way out, before anything loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tiny_training
from sensorium.errors import UsageError
from sensorium.training.recipe import Recipe, facts, load_recipe

SHIPPED = Path(__file__).parents[1] / "recipes" / "mini-image.yaml"


@pytest.fixture
def plan(tmp_path):
    return tiny_training.recipe(tmp_path / "model", tmp_path / "catalogue.jsonl", tmp_path / "out")


def load(tmp_path, plan, *overrides):
    return load_recipe(tiny_training.write_recipe(tmp_path / "recipe.yaml", plan), overrides)


def test_the_shipped_recipe_is_valid_and_says_what_it_does():
    recipe = load_recipe(SHIPPED)
    assert recipe.name == "mini-image" and recipe.composition == "mini"
    assert recipe.projector.start == "concepts" and recipe.lora


def test_the_dump_of_a_recipe_is_the_recipe(tmp_path, plan):
    recipe = load(tmp_path, plan)
    (tmp_path / "again.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"speed": 3}, r"line \d+: unknown key 'speed'"),
        ({"train__stepz": 3}, r"line \d+: unknown key 'train.stepz'; did you mean 'steps'"),
        ({"train__steps": "many"}, r"line \d+: train.steps is 'many': give a whole number"),
        ({"train__steps": 0}, r"line \d+: train.steps is 0: give 1 or more"),
        ({"train__steps": 10**12}, "give a number below 2147483648"),
        ({"train__rows": 3, "train__processes": 2}, r"rows \(3\) must be a multiple of processes \(2\)"),
        ({"train__row_tokens": 8}, "train.row_tokens is 8"),
        ({"train__clip": float("nan")}, "train.clip is nan"),
        ({"train__minutes": float("inf")}, "train.minutes is inf"),
        ({"train__precision": "fp8"}, "'bf16' or 'fp32'"),
        ({"train__seed": -1}, "train.seed is -1"),
        ({"train__learning_rate__projector": 0}, "train.learning_rate.projector is 0"),
        ({"train__learning_rate__projector": 5}, "give a number below 1"),
        ({"train__learning_rate": 0.1}, "train.learning_rate is 0.1: give a mapping of keys"),
        ({"data__mix": {"singel": 1.0}}, r"data.mix has the key 'singel': use 'single',"),
        ({"data__mix": {"single": -1.0}}, "give 0 or more"),
        ({"data__mix": {"single": 0.0}}, "all weights are zero"),
        ({"data__mix": {"single": float("inf")}}, "give a finite number"),
        ({"data__questions": {"smell": 1.0}}, "'yesno'"),
        ({"data__scenes": 0}, r"give either scenes \(a number above 0\) or sets"),
        ({"data__class_features": 1.5}, "data.class_features is 1.5"),
        ({"data__catalogue": ""}, "data.catalogue is ''"),
        ({"projector__kind": "qformer"}, "'qformer' is unknown; known kinds: concept, mlp, resampler"),
        ({"projector__start": "concepts"}, "kind concept can start from concepts; use start: random"),
        ({"projector__options": {"pools": 2}}, "no option 'pools'; its options are pool, hidden"),
        ({"projector__options": {"pool": 0}}, "option pool is 0"),
        ({"projector__options": {"hidden": 10**9}}, "option hidden is 1000000000"),
        ({"projector__options": {"hidden": "wide"}}, "option hidden is 'wide'"),
        ({"projector__options": {"pool": True}}, "option pool is True"),
        ({"lora__rank": 0}, "lora.rank is 0"),
        ({"lora__alpha": -1}, "lora.alpha is -1"),
        ({"lora__alpha": 1e30}, "lora.alpha is 1e.30: give 65536 or less"),
        ({"train__steps": True}, "train.steps is True: give a whole number"),
        ({"train__minutes": True}, "train.minutes is True: give a number"),
        ({"data__scenes": False}, "data.scenes is False: give a whole number"),
        ({"train__log": ["wandb", "wandb"]}, r"train\.log: the log 'wandb' stands there twice; name each once"),
        (
            {"data": {"sets": [{"path": "a"}, {"path": "b"}, {"path": "a", "weight": 2}]}},
            r"line \d+: data\.sets\.2\.path: 'a' stands there twice; keep one",
        ),
        ({"stages": [{"name": "composition"}]}, "stages.0.name is 'composition': the trained composition is called so"),
        (
            {"stages": [{"name": "a", "trains": ["projector", "projector"]}]},
            r"stages\.0\.trains: the part 'projector' stands there twice",
        ),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, r"line \d+: stages\.1\.name: two stages have one name \(a\)"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"output": ""}, "output is ''"),
        ({"output": "a\0b"}, "output is"),
        ({"composition": 5}, "composition is 5"),
    ],
)
def test_bad_recipes_are_one_sentence(tmp_path, plan, change, reason):
    for key, value in change.items():
        *parents, last = key.split("__")
        at = plan
        for name in parents:
            at = at[name]
        at[last] = value
    with pytest.raises(UsageError, match=reason) as caught:
        load(tmp_path, plan)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "recipe.yaml")) and text.endswith((".", "?")) and "\n" not in text


def test_a_missing_key_and_a_missing_file_are_said(tmp_path, plan):
    del plan["data"]["scenes"]
    with pytest.raises(UsageError, match=r"give either scenes \(a number above 0\) or sets"):
        load(tmp_path, plan)
    with pytest.raises(UsageError, match=r"gone\.yaml does not exist"):
        load_recipe(tmp_path / "gone.yaml")


def test_set_changes_any_value_and_makes_sections(tmp_path, plan):
    del plan["lora"]
    recipe = load(
        tmp_path, plan, "train.steps=77", "lora.rank=3", "lora.alpha=6", "data.mix={single: 1}", "train.minutes=null"
    )
    assert recipe.train.steps == 77 and recipe.lora and recipe.lora.rank == 3
    assert recipe.data.mix == {"single": 1.0} and recipe.train.minutes is None
    assert load(tmp_path, plan, "name=a=b".replace("=b", "")).name == "a"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.steps", "is no key=value"),
        ("=5", "is no key=value"),
        ("", "is no key=value"),
        ("train.steps=[1", "the value is no YAML"),
        ("train.steps=" + "[" * 5000, "the value is no YAML"),
        ("train.steps=!!python/object:os.system x", "the value is no YAML"),
        ("train.steps=2020-99-99", "the value is no YAML"),
        ("train.steps=many", "--set 'train.steps=many': train.steps is 'many'"),
        ("train.steps.more=1", "'steps' holds no keys"),
        ("train.stepz=1", "unknown key 'train.stepz'; did you mean 'steps'"),
        ("train..steps=1", "unknown key"),
        ("..=3", "unknown key; it has a name on each side of a dot"),
        ("train.=3", "unknown key; it has a name"),
        ("backbone=file:", "backbone is 'file:': it is unknown; known backbones"),
        ("backbone=/dev/zero", "it is a path; write it as file:/dev/zero"),
        ("backbone=file:/dev/zero", "it is neither a file nor a directory"),
        ("composition=''", "composition is '': give a text that is not empty"),
        ("tokens={names: []}", "tokens.names is a list: list 1 or more"),
        ("train=5", "train is 5"),
        ("projector.options.pool=-1", "option pool is -1"),
        ("data.mix.singel=1", "'singel'"),
        ("name=", "name is None: give a text"),
        ("stages=5", "stages is 5: give a list"),
        ("stages=[]", "stages: it is empty"),
        ("stages.0.name=y", "holds no list 'stages'"),
        ("data={scenes: 0}", "': data: give either scenes (a number above 0) or sets"),
        (
            "train={steps: [1, 2, 3, 4, 5, 6, 7, 8, 9], learning_rate: {projector: 0.1}}",
            "train.steps is a list: give a",
        ),
        ("name=\udcff", "no YAML"),
        ("name=" + "x" * 5000, "name is"),
    ],
)
def test_bad_overrides_are_blamed_and_not_the_file(tmp_path, plan, override, reason):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, plan, "train.rows=8", override)
    text = str(caught.value)
    assert reason in text and "--set" in text and "recipe.yaml" not in text
    assert len(text) < 300 and text.endswith((".", "?")) and "\n" not in text


def test_a_recipe_may_lack_what_set_gives(tmp_path, plan):
    del plan["output"]
    assert load(tmp_path, plan, "output=elsewhere").output == "elsewhere"
    with pytest.raises(UsageError, match=r"recipe\.yaml: the key 'output' is missing"):
        load(tmp_path, plan, "train.steps=3")


def kept(recipe):
    return facts(recipe, recipe.plan()[0])


def test_facts_hold_what_a_resumed_run_must_share(tmp_path, plan):
    before = kept(load(tmp_path, plan))
    for free in ("train.steps=99", "train.learning_rate.lora=0.1", "output=x", "name=y", "train.processes=2"):
        assert kept(load(tmp_path, plan, free)) == before
    for bound in ("train.rows=8", "train.seed=5", "data.scenes=9", "lora.rank=9", "projector.options.hidden=9"):
        assert kept(load(tmp_path, plan, bound)) != before
    assert before["projector.options.hidden"] == 32


def test_a_bad_recipe_fails_before_torch_is_imported(tmp_path, plan):
    plan["train"]["rows"] = "ten"
    path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
    code = """
import sys
from sensorium.cli import run
code = run(["train", sys.argv[1]])
print(code, *sorted({"torch", "onnxruntime", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["2"], ["2", "numpy"])
    assert "train.rows is 'ten'" in done.stderr


def test_every_value_of_the_schema_survives_json(plan):
    assert Recipe.model_validate(yaml.safe_load(Recipe.model_validate(plan).dump())) == Recipe.model_validate(plan)


# Stages ---------------------------------------------------------------------------------------------------------------


def staged(plan):
    return {
        **plan,
        "lora": {"rank": 2},
        "stages": [
            {"name": "align", "trains": ["projector"], "objective": "distill", "train": {"steps": 3}},
            {"name": "instruct", "data": {"scenes": 50, "mix": {"single": 1.0}}},
        ],
    }


def test_a_recipe_without_stages_is_one_stage(tmp_path, plan):
    recipe = load(tmp_path, plan)
    (stage,) = recipe.plan()
    assert (stage.data, stage.train, stage.trains) == (recipe.data, recipe.train, None)
    assert recipe.directory(stage) == Path(recipe.output)


def test_a_stage_says_only_what_differs(tmp_path, plan):
    recipe = load(tmp_path, staged(plan))
    align, instruct = recipe.plan()
    assert align.train == recipe.train.model_copy(update={"steps": 3}) and align.data == recipe.data
    assert align.objective.kind == "distill" and align.trains == ("projector",)
    assert instruct.data.scenes == 50 and instruct.data.seed == recipe.data.seed
    assert instruct.data.mix == {"single": 1.0} and recipe.data.mix != instruct.data.mix  # weights are a whole
    assert recipe.directory(align) == Path(recipe.output) / "align"
    assert facts(recipe, align) != facts(recipe, instruct)


def test_stages_are_changed_by_name_or_number(tmp_path, plan):
    by_name = load(tmp_path, staged(plan), "stages.align.train.steps=9")
    by_number = load(tmp_path, staged(plan), "stages.0.train.steps=9")
    assert by_name == by_number and by_name.plan()[0].train.steps == 9
    everywhere = load(tmp_path, staged(plan), "train.seed=5")
    assert [stage.train.seed for stage in everywhere.plan()] == [5, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora": None}, "stage align trains a lora and the recipe declares none"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two stages have one name"),
        ({"stages": [{"name": "a", "trains": []}]}, "stage a trains nothing"),
        ({"stages": [{"name": "Not A Name"}]}, "stages.0.name"),
        ({"stages": [{"name": "a", "objective": "guess"}]}, "objective"),
        ({"stages": [{"name": "a", "train": {"stepz": 3}}]}, "stepz"),
        ({"stages": [{"name": "a", "train": {"processes": 2}}]}, "all stages run in the same processes"),
        ({"stages": "align"}, "stages"),
    ],
)
def test_stages_that_do_not_fit_are_refused(tmp_path, plan, change, reason):
    recipe = {**staged(plan), **change}
    if "lora" in change:
        recipe["stages"][0]["trains"] = ["projector", "lora"]
    with pytest.raises(UsageError, match=re.escape(reason)):
        load(tmp_path, recipe)


def test_an_unknown_stage_cannot_be_changed(tmp_path, plan):
    for key in ("stages.polish.train.steps", "stages.7.name", "stages"):
        with pytest.raises(UsageError, match="stage"):
            load(tmp_path, staged(plan), f"{key}=3")


# What trains, how long, how much at once ------------------------------------------------------------------------------


SETS = {"sets": [{"path": "samples.jsonl"}]}


def changed(plan, **changes):
    """The plan with changes of dotted keys; None takes a key out."""
    import copy

    plan = copy.deepcopy(plan)
    for key, value in changes.items():
        *parents, last = key.split("__")
        at = plan
        for name in parents:
            at = at[name]
        at.pop(last, None)
        if value is not None:
            at[last] = value
    return plan


@pytest.fixture
def files(tmp_path, plan, monkeypatch):
    """The plan on samples in a file that exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples.jsonl").write_text("{}\n")
    return changed(plan, data=SETS)


def test_epochs_and_batch_tokens_stand_in_for_steps_and_rows(tmp_path, files):
    by_epochs = load(tmp_path, changed(files, train__steps=None, train__epochs=3))
    assert (by_epochs.train.steps, by_epochs.train.epochs) == (0, 3)
    by_tokens = load(tmp_path, changed(files, train__rows=None, train__batch_tokens=256 * 12))
    assert by_tokens.train.rows == 12
    for recipe in (by_epochs, by_tokens):
        (tmp_path / "again.yaml").write_text(recipe.dump())
        assert load_recipe(tmp_path / "again.yaml") == recipe
    freed = load(tmp_path, files, "train.rows=null", "train.batch_tokens=512", "train.steps=null", "train.epochs=1")
    assert (freed.train.rows, freed.train.steps, freed.train.epochs) == (2, 0, 1)


def test_a_stage_may_say_its_length_and_size_the_other_way(tmp_path, files):
    stages = [{"name": "a", "train": {"epochs": 2, "batch_tokens": 512}}, {"name": "b"}]
    a, b = load(tmp_path, {**files, "stages": stages}).plan()
    assert (a.train.steps, a.train.epochs, a.train.rows) == (0, 2, 2)
    assert (b.train.steps, b.train.epochs, b.train.rows) == (6, None, 4)
    back = changed({**files, "stages": [{"name": "a", "train": {"steps": 5, "rows": 8}}]}, train__rows=None)
    back = changed(back, train__steps=None, train__epochs=3, train__batch_tokens=512)
    (a,) = load(tmp_path, back).plan()
    assert (a.train.steps, a.train.epochs, a.train.rows, a.train.batch_tokens) == (5, None, 8, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train__epochs": 3}, r"line \d+: train.epochs is 3: steps is 6 as well; keep one"),
        ({"train__steps": None}, r"line \d+: train.*says no end; give steps, or epochs"),
        ({"train__steps": None, "train__epochs": 0}, r"train.epochs is 0"),
        ({"train__rows": None, "train__batch_tokens": 1000}, r"no multiple of row_tokens \(256\); give 768 or 1024"),
        ({"train__rows": None, "train__batch_tokens": 100}, r"no multiple of row_tokens \(256\); give 256"),
        ({"train__batch_tokens": 512}, r"rows \(4\) times row_tokens \(256\) is 1024; leave rows out"),
        ({"train__schedule": "stairs"}, r"line \d+: train.schedule.*'wsd'"),
        ({"train__learning_rate__backbone": 0}, r"line \d+: train.learning_rate.backbone"),
        ({"tokens": {"names": []}}, r"line \d+: tokens.names"),
        ({"tokens": {"names": ["<a>", "<a>"]}}, r"line \d+: tokens.names.*stands there twice"),
        ({"tokens": {"names": ["a b"]}}, r"line \d+: tokens.names.0 is 'a b'"),
    ],
)  # fmt: skip
def test_lengths_sizes_and_tokens_that_make_no_sense(tmp_path, files, changes, reason):
    with pytest.raises(UsageError, match=reason):
        load(tmp_path, changed(files, **changes))


def test_scenes_have_no_epochs(tmp_path, plan):
    with pytest.raises(UsageError, match=r"line \d+: train.epochs.*scenes are drawn without end; give steps"):
        load(tmp_path, changed(plan, train__steps=None, train__epochs=3))


TOKENS = {"names": ["<one>", "<two>"]}


@pytest.mark.parametrize(
    ("trains", "declared", "reason"),
    [
        (["tokens"], {}, "trains tokens and the recipe declares none; add tokens:"),
        (["projector", "backbone"], {"lora": {"rank": 2}}, "trains the backbone, which a lora changes"),
        ([], {}, "trains nothing; list some of projector, lora, backbone, tokens"),
        (["adapter"], {}, "'backbone' or 'tokens'"),
    ],
)
def test_what_a_stage_trains_must_be_declared_and_go_together(tmp_path, plan, trains, declared, reason):
    plan = {**changed(plan, lora=None), **declared, "stages": [{"name": "one"}, {"name": "two", "trains": trains}]}
    path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
    line = path.read_text().splitlines().index(f"  trains:{'' if trains else ' []'}") + 1
    with pytest.raises(UsageError, match=rf"line ({line}|{line + 1}): .*{re.escape(reason)}"):
        load_recipe(path)


def test_a_stage_cannot_distil_from_what_it_trains(tmp_path, plan):
    stages = [{"name": "one", "trains": ["backbone"], "objective": "distill"}]
    with pytest.raises(UsageError, match=r"line \d+: .*would train its own teacher"):
        load(tmp_path, {**changed(plan, lora=None), "stages": stages})


def test_all_that_is_declared_trains_but_never_the_backbone(tmp_path, plan):
    recipe = load(tmp_path, {**plan, "tokens": TOKENS})
    assert recipe.trains(recipe.plan()[0]) == ("projector", "lora", "tokens")
    recipe = load(tmp_path, {**changed(plan, lora=None), "stages": [{"name": "a", "trains": ["backbone"]}]})
    assert recipe.trains(recipe.plan()[0]) == ("backbone",)
    assert facts(recipe, recipe.plan()[0]) != facts(*(lambda r: (r, r.plan()[0]))(load(tmp_path, plan)))
