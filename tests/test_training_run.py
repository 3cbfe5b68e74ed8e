"""`sensorium train` and `sensorium features` from end to end, on the tiny composition and pictures drawn here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image as Pillow

import tiny
import tiny_ranks
import tiny_training

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The tiny composition and a catalogue."""
    directory = tmp_path_factory.mktemp("material")
    return tiny.write(directory / "model"), tiny_training.write_catalogue(directory / "pictures")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.getbasetemp() / "training-home"
    monkeypatch.setenv("SENSORIUM_HOME", str(home))
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    monkeypatch.delenv("SENSORIUM_DEBUG", raising=False)
    return home


@pytest.fixture
def recipe(material, tmp_path):
    """Write a recipe with changes; its output is ``tmp_path / name``."""

    def write(name="out", /, **changes):
        plan = tiny_training.recipe(*material, tmp_path / name, **changes)
        return tiny_training.write_recipe(tmp_path / f"{name}.yaml", plan), tmp_path / name

    return write


def losses(output):
    return {line["step"]: line["loss"] for line in map(json.loads, (output / "log.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def trained(material, tmp_path_factory):
    """A run of 30 steps over two dozen scenes, and what it printed."""
    home = tmp_path_factory.getbasetemp() / "training-home"
    directory = tmp_path_factory.mktemp("trained")
    plan = tiny_training.recipe(*material, directory / "out", train__steps=30, train__checkpoint_every=20)
    plan["train"]["learning_rate"] = {"projector": 0.01, "lora": 0.01}
    plan["install"] = str(directory / "installed")
    path = tiny_training.write_recipe(directory / "recipe.yaml", plan)
    environment = {**os.environ, "SENSORIUM_HOME": str(home), "SENSORIUM_OFFLINE": "1"}
    command = [sys.executable, "-m", "sensorium", "train", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "out", done, path


# What a run leaves ----------------------------------------------------------------------------------------------------


def test_training_learns(trained):
    seen = losses(trained[0])
    assert sorted(seen) == list(range(30))
    assert np.mean([seen[s] for s in range(25, 30)]) < 0.8 * np.mean([seen[s] for s in range(5)])


def test_a_table_of_parts_comes_before_the_first_step(trained):
    _, done, _ = trained
    before = done.stderr.partition("step     0")[0]
    table = {line.split()[0]: line for line in before.splitlines() if re.search(r"\b(frozen|trained)\b", line)}
    assert set(table) >= {"encoders.image", "backbone", "lora", "projectors.image"}
    assert "frozen" in table["backbone"] and "frozen" in table["encoders.image"]
    assert "trained" in table["lora"] and "trained" in table["projectors.image"]
    weights = 24 * 2 + 24 * 32 + 32 + 32 * tiny.DIM + tiny.DIM
    assert f"{weights:,}" in table["projectors.image"]
    assert "Frozen weights unchanged (sha256" in done.stderr
    assert done.stdout == f"{trained[0] / 'composition'}\n"


def test_the_trained_composition_answers_about_pictures(trained, sensorium, tmp_path):
    composition = trained[0] / "composition"
    Pillow.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    code, out, err = sensorium(
        "ask", "What is this?", "-a", tmp_path / "red.png", "--model", composition, "--json", "--max-tokens", 4
    )
    assert code == 0, err
    assert json.loads(out)["usage"]["media_tokens"] == 4
    code, out, _ = sensorium("parts", "--model", composition, "--json")
    parts = {part["name"]: part for part in json.loads(out)["parts"]}
    assert parts["projectors.image"]["state"] == parts["lora"]["state"] == "trained"
    assert parts["backbone"]["state"] == "frozen"


def test_the_finished_composition_is_installed(trained):
    from sensorium.composition import Composition

    installed = trained[0].parent / "installed"
    assert f"Installed: {installed}\n" in trained[1].stderr
    Composition(installed).check_files()
    assert {p.name: p.read_bytes() for p in installed.iterdir()} == {
        p.name: p.read_bytes() for p in (trained[0] / "composition").iterdir()
    }


def test_the_manifest_names_the_frozen_parts_the_recipe_and_the_data(trained, material):
    from sensorium.composition import Composition, file_sha256

    manifest = json.loads((trained[0] / "composition" / "manifest.json").read_text())
    base = json.loads((material[0] / "manifest.json").read_text())
    assert manifest["frozen"] == base["frozen"]
    assert set(manifest["files"]) == {"image.onnx", "image.safetensors", "lora.safetensors"}
    assert manifest["data"] == {"catalogue_sha256": file_sha256(material[1]), "scenes": 24}
    assert manifest["recipe"]["train"]["steps"] == 30 and manifest["run"]["steps"] == 30
    composition = Composition.find(trained[0] / "composition")
    composition.check_files()
    assert composition.part("backbone").source == f"file:{material[0] / 'llm.gguf'}"


def test_text_without_pictures_is_the_bare_backbone(trained, material):
    """Training touched the LoRA and the projector: a conversation without media must not notice."""
    import sensorium
    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.messages import Message
    from sensorium.training.backbone import load_llama

    bare = sensorium.load(tiny.write(trained[0].parent / "bare", lora=False, projector=False), progress=False)
    ours = sensorium.load(trained[0] / "composition", progress=False)
    messages = [Message("user", "Hello, what is a cat?")]
    prepared = ours.prepare(messages)
    logits = prepared.engine.logits(prepared.segments)
    assert np.array_equal(logits, bare.prepare(messages).engine.logits(bare.prepare(messages).segments))
    assert ours.ask("Hello, what is a cat?", max_tokens=12) == bare.ask("Hello, what is a cat?", max_tokens=12)
    with GGUF(material[0] / "llm.gguf") as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32)
    ids = torch.tensor([prepared.rendered.ids()])
    mask = torch.full((ids.shape[1], ids.shape[1]), -1e4).triu(1)[None, None]
    with torch.no_grad():
        theirs = llm.logits(llm(llm.embed(ids), torch.arange(ids.shape[1])[None], mask)[0]).numpy()
    np.testing.assert_allclose(logits, theirs, rtol=1e-3, atol=1e-3)


def test_inference_sees_the_loss_that_training_saw(trained, material, cache):
    """The features, tokens, projector and LoRA of a training row give in the runtime what they gave in torch."""
    import sensorium
    from sensorium.messages import Message
    from sensorium.training.data.scenes import Pool, compose, load_items

    scene = compose(
        Pool([i for i in load_items(material[1]) if i.split == "train"]),
        (1 << 32) + 2,
        {"single": 0.5, "several": 0.3, "count": 0.2},
    )
    model = sensorium.load(trained[0] / "composition", progress=False)
    asked = [Message("user", [sensorium.load_image(scene.pixels), "Describe this picture."])]
    scores = model.score(asked, ["A dog."])

    from safetensors.torch import load_file

    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.encoders import create
    from sensorium.projectors.mlp import MLPProjector
    from sensorium.training.backbone import load_llama
    from sensorium.training.objectives.next_token import next_token
    from sensorium.training.recipe import LoraRecipe
    from sensorium.training.rows import pack, question_branch

    with GGUF(material[0] / "llm.gguf") as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), LoraRecipe(rank=2, alpha=2), torch.float32)
        tokenizer = Tokenizer.from_gguf(gguf)
    lora = load_file(trained[0] / "composition" / "lora.safetensors")
    for i, block in enumerate(llm.blocks):
        for name, layer in block.named_children():
            if hasattr(layer, "lora_A"):
                layer.lora_A.data = lora[f"layers.{i}.{name}.lora_A"].float()
                layer.lora_B.data = lora[f"layers.{i}.{name}.lora_B"].float() / layer.scale
    projector = MLPProjector(tiny.FEATURES, tiny.DIM, (tiny.GRID, tiny.GRID), pool=2, hidden=32)
    projector.load_state_dict(load_file(trained[0] / "composition" / "image.safetensors"))
    features = create("linear-patches", material[0] / "patches.npy", grid=tiny.GRID).encode([scene.pixels])
    layout, branch = question_branch("Describe this picture.", "A dog.", tokenizer, tiny.TOKENS)
    rows = pack(layout, [[branch]], layout.length + len(branch.ids))
    with torch.no_grad():
        loss, weight = next_token(llm, projector.float()(torch.from_numpy(features)), rows)
    assert scores.tokens[0] == weight
    assert scores.logprobs[0] == pytest.approx(-float(loss) * weight, rel=2e-3)


# Interrupting and resuming --------------------------------------------------------------------------------------------


def start(path, *arguments, home):
    environment = {**os.environ, "SENSORIUM_HOME": str(home), "SENSORIUM_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sensorium", "train", str(path), *map(str, arguments)]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, preexec_fn=hear_interrupts, **streams)


def hear_interrupts():
    """A shell's background job starts with SIGINT ignored, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(child, text):
    """Read standard error up to a line with ``text``."""
    read = []
    for line in child.stderr:
        read.append(line)
        if text in line:
            return read
    raise AssertionError("".join(read))


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on(recipe, sensorium, cache, processes):
    path, output = recipe("whole", train__steps=8, train__checkpoint_every=100)
    assert sensorium("train", path)[0] == 0
    path, output_2 = recipe("parts", train__steps=8, train__checkpoint_every=100, train__processes=processes)
    child = start(path, home=cache)
    wait_for(child, "step     1/8")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 130 and out == ""
    assert err.strip().splitlines()[-1] == f"Interrupted; continue with: sensorium train {path} --resume {output_2}"
    assert "Traceback" not in err
    assert (output_2 / "checkpoint.safetensors").is_file()
    code, _, err = sensorium("train", path, "--resume", output_2)
    assert code == 0, err
    whole, parts = losses(output), losses(output_2)
    assert whole.keys() == parts.keys()
    if processes == 1:
        assert whole == parts
    np.testing.assert_allclose([parts[s] for s in whole], [whole[s] for s in whole], rtol=1e-4)


def test_a_killed_run_is_resumed_to_the_same_end(recipe, sensorium, cache):
    path, output = recipe("whole", train__steps=8)
    assert sensorium("train", path)[0] == 0
    path, output_2 = recipe("killed", train__steps=8)
    child = start(path, home=cache)
    wait_for(child, "step     4/8")  # behind the checkpoint of step 3
    child.kill()
    child.communicate()
    assert sensorium("train", path, "--resume", output_2)[0] == 0
    assert losses(output_2) == losses(output)
    one, two = ((o / "composition" / "image.safetensors").read_bytes() for o in (output, output_2))
    assert one == two


def test_killing_the_parent_takes_its_processes_along(recipe, cache):
    path, _ = recipe("orphans", train__steps=100_000, train__processes=2, train__checkpoint_every=10_000)
    child = start(path, home=cache)
    wait_for(child, "step     1/")
    children = [int(p) for p in os.popen(f"ps -o pid= --ppid {child.pid}").read().split()]
    assert len(children) >= 2
    child.kill()
    child.wait()
    until = time.monotonic() + 120
    while time.monotonic() < until and any(alive(pid) for pid in children):
        time.sleep(0.2)
    assert not any(alive(pid) for pid in children)
    child.stderr.close()
    child.stdout.close()


def alive(pid):
    try:
        state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]  # noqa: SIM115, PTH123
    except OSError:
        return False
    return state != "Z"


# Refusals -------------------------------------------------------------------------------------------------------------


def complaint(result, code):
    assert result[0] == code and result[1] == "", result
    lines = [line for line in result[2].splitlines() if line.startswith("sensorium: ")]
    assert len(lines) == 1 and lines[0].endswith(".") and len(lines[0]) < 420, result[2]
    return lines[0]


def test_a_run_is_not_overwritten_and_not_resumed_with_another_recipe(trained, sensorium):
    output, _, path = trained
    assert "holds the checkpoint of a run already; continue it with --resume" in complaint(sensorium("train", path), 2)
    for change, shown in [
        ("lora.rank=4", "lora.rank = 2, and now it is 4"),
        ("data.seed=9", "data.seed = 1"),
        ("train.rows=2", "train.rows = 4"),
    ]:
        assert shown in complaint(sensorium("train", path, "--resume", output, "--set", change), 1)
    assert losses(output)  # nothing was lost


def test_a_run_is_not_resumed_against_other_frozen_parts(trained, sensorium, tmp_path, material):
    output, _, path = trained
    other = tiny.write(tmp_path / "other", seed=5)
    said = complaint(sensorium("train", path, "--resume", output, "--set", f"composition={other}"), 1)
    assert "backbone = " in said and "and now it is" in said


def test_resume_wants_the_directory_of_a_run(recipe, sensorium, tmp_path):
    path, _ = recipe()
    assert "is no output directory" in complaint(sensorium("train", path, "--resume", tmp_path / "gone"), 2)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "recipe.yaml").write_text("name: x")
    assert "holds no checkpoint" in complaint(sensorium("train", path, "--resume", tmp_path / "early"), 1)


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"composition": "nowhere"}, 2, "'nowhere' is no model"),
        ({"data__class_features": 0.3}, 2, "linear-patches has no classifier; set data.class_features=0"),
        ({"projector": {"kind": "concept", "start": "concepts"}}, 2, "has no classifier"),
        ({"projector": {"kind": "mlp", "options": {"pool": 3}}}, 2, "pool=3 does not divide the encoder's grid of 4x4"),
        ({"data__catalogue": "gone.jsonl"}, 2, "catalogue gone.jsonl"),
        ({"output": "/dev/null/out"}, 2, "is no directory"),
        ({"train__row_tokens": 32}, 1, "raise train.row_tokens"),
        ({"data__mix": {"photo": 1.0}, "data__questions": {"count": 1.0, "side": 1.0}}, 1, "allow none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(recipe, sensorium, tmp_path, monkeypatch, changes, code, reason):
    monkeypatch.chdir(tmp_path)
    path, output = recipe(**changes)
    assert reason in complaint(sensorium("train", path), code)
    assert not (output / "composition").exists()


@pytest.mark.parametrize("kind", ["scenes", "sets"])
def test_rows_that_hold_no_sample_are_refused_before_anything_is_computed(recipe, sensorium, sets, monkeypatch, kind):
    from sensorium.training import run

    monkeypatch.setattr(run, "compute_features", lambda _: pytest.fail("features were computed"))
    changes = {"data": {"sets": sets[:1]}} if kind == "sets" else {"projector__options": {"pool": 1}}
    path, _ = recipe(train__row_tokens=32, **changes)
    said = complaint(sensorium("train", path), 1)
    assert "raise train.row_tokens" in said and "recipe.yaml" not in said and f"{path}, line " in said


def test_a_composition_without_an_encoder_is_refused(recipe, sensorium, tmp_path):
    text_only = tiny.write(tmp_path / "text", lora=False, projector=False)
    path, _ = recipe(composition=str(text_only))
    assert "declares no image encoder" in complaint(sensorium("train", path), 2)


def test_a_projector_alone_can_be_trained(recipe, sensorium):
    path, output = recipe("alone", lora=None, train__steps=2)
    code, _, err = sensorium("train", path)
    assert code == 0 and "lora" not in err
    assert "lora" not in (output / "composition" / "composition.yaml").read_text()
    assert sensorium("ask", "hi", "--model", output / "composition", "--max-tokens", 2)[0] == 0


# Samples in files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path):
    """A file of OpenAI-style messages with pictures, and LLaVA's JSON."""
    directory = tmp_path / "samples"
    directory.mkdir()
    messages, llava = [], []
    for i, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)] * 3):
        Pillow.new("RGB", (40, 30), colour).save(directory / f"{i}.png")
        name = ("red", "green", "blue", "yellow")[i % 4]
        asked = [{"type": "image", "image": f"{i}.png"}, {"type": "text", "text": "What colour?"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is {name}."}]
        messages.append(json.dumps({"id": f"m{i}", "messages": turns}))
        said = [{"from": "human", "value": "<image>\nA colour?"}, {"from": "gpt", "value": name}]
        llava.append({"id": f"l{i}", "image": f"{i}.png", "conversations": said})
    (directory / "messages.jsonl").write_text("\n".join(messages) + "\n")
    (directory / "llava.json").write_text(json.dumps(llava))
    return [{"path": str(directory / "messages.jsonl")}, {"path": str(directory / "llava.json"), "weight": 0.5}]


def test_samples_in_files_train_and_are_resumed(recipe, sensorium, cache, sets):
    values = {"data": {"sets": sets}, "train__steps": 12, "train__log_every": 1, "train__row_tokens": 120}
    values["train__learning_rate"] = {"projector": 0.01, "lora": 0.01}
    path, whole = recipe("whole", **values)
    code, _, err = sensorium("train", path)
    assert code == 0, err
    seen = losses(whole)
    assert np.mean([seen[s] for s in range(9, 12)]) < 0.9 * np.mean([seen[s] for s in range(3)])
    manifest = json.loads((whole / "composition" / "manifest.json").read_text())
    assert manifest["data"] == {"sets": sorted(s["path"] for s in sets)}
    path, parts = recipe("parts", **values)
    child = start(path, home=cache)
    wait_for(child, "step     4/12")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=300)
    assert sensorium("train", path, "--resume", parts)[0] == 0
    assert losses(parts) == seen


def test_files_and_scenes_do_not_mix_in_a_stage(recipe, sensorium, sets):
    path, _ = recipe("both", data__sets=sets)
    assert "either scenes" in complaint(sensorium("train", path), 2)
    path, _ = recipe("twins", data={"sets": sets}, stages=[{"name": "a", "objective": "distill"}])
    assert "no text twins" in complaint(sensorium("train", path), 2)
    path, _ = recipe("gone", data={"sets": [{"path": "nowhere.jsonl"}]})
    assert "nowhere.jsonl does not exist" in complaint(sensorium("train", path), 2)


# Evaluation at the end ------------------------------------------------------------------------------------------------


def test_a_run_is_evaluated_at_its_end(recipe, sensorium, monkeypatch):
    from sensorium.errors import SensoriumError
    from sensorium.evaluation import run as evaluation

    row = {"name": "yes/no", "chance": 0.5, "blind": 0.5, "shuffled": 0.5, "cascade": 0.5, "model": 0.7, "ci95": [0, 1]}
    asked = []

    def fake(suites, **options):
        asked.append((suites, options["model"], options["split"], options["results"]))
        return {"suites": {"image": {"rows": [{**row, "n": 9, "p": None}]}}}

    monkeypatch.setattr(evaluation, "evaluate", fake)
    path, output = recipe("good", evaluate="photographs", train__steps=1)
    code, _, err = sensorium("train", path)
    assert code == 0, err
    assert asked == [(["image"], output / "composition", "dev", None)]
    manifest = json.loads((output / "composition" / "manifest.json").read_text())
    assert manifest["metrics"] == {"photographs, development half": [{**row, "n": 9}]}

    def fails(*_, **__):
        raise SensoriumError("No photograph.")

    monkeypatch.setattr(evaluation, "evaluate", fails)
    path, output = recipe("offline", evaluate="photographs", train__steps=1)
    code, _, err = sensorium("train", path)
    assert code == 0 and "was not evaluated: No photograph." in err


# Launchers ------------------------------------------------------------------------------------------------------------


ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "{port}"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate-cpu": [*ACCELERATE, "--cpu"],  # starts one process, which starts those of the recipe
    "accelerate-fsdp": [*ACCELERATE, "--use_fsdp", "--fsdp_version", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_gives_the_losses_of_a_single_process(recipe, sensorium, cache, launcher):
    if launcher != "torchrun":
        pytest.importorskip("accelerate")
    path, alone = recipe("alone", train__steps=4)
    assert sensorium("train", path)[0] == 0
    path, two = recipe("two", train__steps=4, train__processes=2)
    command = [word.format(port=tiny_ranks.free_port()) for word in LAUNCHERS[launcher]]
    command = [sys.executable, "-m", *command, "-m", "sensorium.training", str(path)]
    environment = {**os.environ, "SENSORIUM_HOME": str(cache), "SENSORIUM_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one = losses(alone)
    np.testing.assert_allclose([losses(two)[s] for s in one], list(one.values()), rtol=1e-4)
    assert "2 processes" in done.stderr
    assert ("each keeps its share of the model" in done.stderr) is (launcher == "accelerate-fsdp")
    names = ("image.safetensors", "lora.safetensors")
    for one_file, two_file in ((alone / "composition" / name, two / "composition" / name) for name in names):
        assert one_file.stat().st_size == two_file.stat().st_size


def test_accelerate_that_starts_one_process_for_two_says_so(recipe, sensorium, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "add train.processes=2" in complaint(sensorium("train", recipe("one")[0]), 2)


# Stages ---------------------------------------------------------------------------------------------------------------


def staged(recipe, name, **changes):
    stages = [
        {"name": "align", "trains": ["projector"], "objective": "distill", "train": {"steps": 5}},
        {"name": "instruct", "data": {"seed": 3}},
    ]
    return recipe(name, stages=stages, train__steps=6, train__checkpoint_every=100, **changes)


def tensors(output):
    from safetensors.torch import load_file

    return {n: t for f in ("image", "lora") for n, t in load_file(output / "composition" / f"{f}.safetensors").items()}


def test_stages_run_in_order_and_hold_still_what_they_do_not_train(recipe, sensorium):
    path, output = staged(recipe, "staged")
    code, _, err = sensorium("train", path)
    assert code == 0, err
    assert "Stage 1 of 2, align: distill" in err and "Stage 2 of 2, instruct: next_token" in err
    first, second = err.split("Stage 2 of 2")
    assert re.search(r"lora .* frozen", first) and re.search(r"lora .* trained", second)
    assert "memory: about" in first and "time: about" in first
    assert losses(output / "align").keys() == set(range(5)) and losses(output / "instruct").keys() == set(range(6))
    from sensorium.training import checkpoint

    aligned = checkpoint.trained(output / "align")
    assert aligned and all(name.startswith("projector.") for name in aligned)
    assert "text without media bit for bit the bare backbone's" in err
    assert any(t.abs().sum() > 0 for n, t in tensors(output).items() if "lora_B" in n)


@pytest.mark.parametrize("line", [r"step     2/5", r"step     2/6"])
def test_a_staged_run_goes_on_where_it_was_killed(recipe, sensorium, cache, line):
    path, whole = staged(recipe, "whole", train__log_every=1)
    assert sensorium("train", path)[0] == 0
    path, parts = staged(recipe, "parts", train__log_every=1)
    child = start(path, home=cache)
    wait_for(child, line)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=300)
    assert child.returncode == 130
    code, _, err = sensorium("train", path, "--resume", parts)
    assert code == 0, err
    for stage in ("align", "instruct"):
        assert losses(parts / stage) == losses(whole / stage)
    ran = json.loads((parts / "composition" / "manifest.json").read_text())["run"]
    assert ran["steps"] == 11 and {name: done["steps"] for name, done in ran["stages"].items()} == {
        "align": 5,
        "instruct": 6,
    }
    one, two = tensors(whole), tensors(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)


# Features -------------------------------------------------------------------------------------------------------------


def test_features_fills_the_store_once(recipe, sensorium):
    path, output = recipe(data__seed=77)
    code, out, _ = sensorium("features", path)
    assert code == 0 and not output.exists()
    (directory,) = out.split()
    from pathlib import Path

    before = {file.name: file.stat().st_mtime_ns for file in Path(directory).iterdir()}
    assert "00000-24.npy" in before
    assert sensorium("features", path)[:2] == (0, out)
    assert {file.name: file.stat().st_mtime_ns for file in Path(directory).iterdir()} == before
