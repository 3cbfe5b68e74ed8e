"""The loop on a tiny backbone and made-up batches: learning, resuming, sharing, stopping, diverging."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest

import tiny

torch = pytest.importorskip("torch")

from sensorium.backbones.gguf import GGUF  # noqa: E402
from sensorium.backbones.spec import spec_from_gguf  # noqa: E402
from sensorium.backbones.tokenizer import Tokenizer  # noqa: E402
from sensorium.errors import SensoriumError  # noqa: E402
from sensorium.projectors.mlp import MLPProjector  # noqa: E402
from sensorium.training import checkpoint, loop  # noqa: E402
from sensorium.training.backbone import digest_frozen, load_llama  # noqa: E402
from sensorium.training.compose_task import ComposeTask  # noqa: E402
from sensorium.training.data.formats.ahead import ahead  # noqa: E402
from sensorium.training.processes import StopRequest, run_ranks  # noqa: E402
from sensorium.training.recipe import LoraRecipe, TrainRecipe  # noqa: E402
from sensorium.training.rows import pack, question_branch  # noqa: E402

CELLS, DIM, TOKENS, ROWS = 4, 6, 4, 4
PAIRS = [
    ("What is it?", "A cat."),
    ("Is it a dog?", "No."),
    ("How many?", "Two."),
    ("Where?", "On the left."),
    ("Who?", "A"),
]


class Stream:
    """Pictures of a few kinds, each with its own questions; rows are divided among ranks as ``SampleStream`` does."""

    def __init__(self, tokenizer, rank=0, world=1, spoiled=()):
        self.rank, self.rows, self.spoiled = rank, ROWS // world, spoiled
        made = [question_branch(q, a, tokenizer, TOKENS, 1.0 + (a == "No.")) for q, a in PAIRS]
        self.layout, self.pool = made[0][0], [branch for _, branch in made]

    def batches(self, start, stop):
        for step in range(start, stop):
            features, samples = [], []
            for index in range(self.rank * self.rows, (self.rank + 1) * self.rows):
                rng = np.random.default_rng([step, index])
                kind = int(rng.integers(3))
                features.append(
                    np.sin(np.arange(CELLS * DIM).reshape(CELLS, DIM) * (kind + 1)) + rng.normal(0, 0.01, (CELLS, DIM))
                )
                samples.append([self.pool[kind + i] for i in range(1 + int(rng.integers(3)))])
            batch = np.stack(features).astype(np.float32)
            features = np.full_like(batch, np.nan) if step in self.spoiled else batch
            yield features, pack(self.layout, samples, 120), None


def recipe(**changes):
    values = {"steps": 8, "rows": ROWS, "learning_rate": {"projector": 0.01, "concepts": 0.001, "lora": 0.01}}
    values |= {"warmup": 2, "checkpoint_every": 3, "log_every": 1, "precision": "fp32", "compile": False}
    return TrainRecipe.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("loop") / "llm.gguf"
    tiny.write_gguf(path, np.random.default_rng(0))
    return path


def build(file, rank=2):
    torch.manual_seed(0)
    with GGUF(file) as gguf:
        lora = LoraRecipe(rank=rank, alpha=4.0) if rank else None
        llm, tokenizer = load_llama(gguf, spec_from_gguf(gguf), lora, torch.float32), Tokenizer.from_gguf(gguf)
    return MLPProjector(DIM, tiny.DIM, (2, 2), hidden=16), llm, tokenizer


def task(projector, llm, stream=None, plan=None):
    return ComposeTask(projector, llm, stream, (plan or recipe()).learning_rate)


def run(file, output, plan=None, spoiled=(), **options):
    projector, llm, tokenizer = build(file)
    output.mkdir(exist_ok=True)
    plan = plan or recipe()
    steps = loop.train_loop(task(projector, llm, Stream(tokenizer, spoiled=spoiled), plan), plan, output, **options)
    return steps, projector, llm


def losses(output):
    return {line["step"]: line["loss"] for line in map(json.loads, (output / loop.LOG).read_text().splitlines())}


def weights(output):
    from safetensors.torch import load_file

    return {n: t for n, t in load_file(output / checkpoint.FILE).items() if n != "rng"}


def test_a_few_pictures_are_learnt_and_nothing_frozen_moves(file, tmp_path):
    before = digest_frozen(build(file)[1])
    steps, _, llm = run(file, tmp_path / "a", recipe(steps=60))
    seen = losses(tmp_path / "a")
    assert steps == 60 and sorted(seen) == list(range(60))
    assert np.mean([seen[s] for s in range(55, 60)]) < 0.4 * seen[0]
    assert digest_frozen(llm) == before


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(file, tmp_path):
    run(file, tmp_path / "whole")
    asked = iter([False] * 4 + [True])
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "parts", stopping=lambda: next(asked))
    assert checkpoint.check(tmp_path / "parts", {}) == 5
    steps, _, _ = run(file, tmp_path / "parts", resume=True)
    assert steps == 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, two = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_run_goes_on_from_its_last_checkpoint(file, tmp_path):
    """Killed in step 7, two steps behind the checkpoint of step 6 and in the middle of a line of its log."""
    run(file, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(line):
        if line.step == 7:
            raise Killed

    with pytest.raises(Killed):
        run(file, tmp_path / "parts", report=kill)
    with (tmp_path / "parts" / loop.LOG).open("a") as log:
        log.write('{"step": 8, "lo')
    assert checkpoint.check(tmp_path / "parts", {}) == 6
    run(file, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(file, tmp_path):
    run(file, tmp_path / "a")
    before = weights(tmp_path / "a")
    assert run(file, tmp_path / "a", resume=True)[0] == 8
    after = weights(tmp_path / "a")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(losses(tmp_path / "a")) == 8


def test_other_learning_rates_keep_each_tensors_own_optimizer_state(file, tmp_path):
    """With equal rates the optimizer has one group, with others more: no state may be swapped between tensors."""
    run(file, tmp_path / "a", recipe(learning_rate={"projector": 0.01, "concepts": 0.01, "lora": 0.01}))
    projector, llm, _ = build(file)
    tensors = task(projector, llm).tensors()
    plan = recipe(steps=9, learning_rate={"projector": 0.001, "lora": 0.02})
    optimizer = loop.make_optimizer(task(projector, llm, plan=plan), plan)
    checkpoint.load(tmp_path / "a", tensors, optimizer, {})
    saved = weights(tmp_path / "a")
    for name, tensor in tensors.items():
        assert torch.equal(tensor.detach(), saved[f"model.{name}"])
        assert torch.equal(optimizer.state[tensor]["exp_avg"], saved[f"optimizer.exp_avg.{name}"])
        assert int(optimizer.state[tensor]["step"]) == 8


def _rank(rank, address, file, output):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    projector, llm, tokenizer = build(file)
    loop.train_loop(task(projector, llm, Stream(tokenizer, rank, 2)), recipe(), output, rank=rank, world=2)
    dist.barrier()  # whoever leaves first must not take the meeting point with it
    dist.destroy_process_group()


@pytest.mark.timeout(900)
def test_two_processes_take_the_steps_of_one(file, tmp_path):
    run(file, tmp_path / "one")
    (tmp_path / "two").mkdir()
    run_ranks(_rank, 2, (file, tmp_path / "two"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    np.testing.assert_allclose([two[s] for s in one], [one[s] for s in one], rtol=1e-4)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    worst = max(float((a[n] - b[n]).abs().max()) for n in a if n.startswith("model."))
    assert worst < 1e-3  # Adam turns rounding into steps of its own where a gradient is nearly zero


def _fail(rank, address, how):
    if rank == 1:
        if how == "sentence":
            raise SensoriumError("rank 1 has a reason.")
        if how == "bug":
            raise ZeroDivisionError("a bug\nwith two lines")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
    import time

    time.sleep(600)  # a rank that waits for the other


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "kind", "reason"),
    [
        ("sentence", SensoriumError, r"^rank 1 has a reason\.$"),
        ("bug", SensoriumError, r"process 1 \(ZeroDivisionError: a bug\)"),
        ("killed", SensoriumError, r"process 1 ended with code -9 \(memory may have run out\)"),
        ("interrupted", KeyboardInterrupt, "^$"),
    ],
)
def test_a_failing_process_ends_the_others_and_is_one_sentence(how, kind, reason, capfd):
    with pytest.raises(kind, match=reason) as caught:
        run_ranks(_fail, 2, (how,))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_the_first_interrupt_is_noted_and_the_second_obeyed():
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)  # a shell's background job starts with SIGINT ignored
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("first", [1, 4])
def test_a_run_that_diverges_ends_with_a_sentence_and_a_finite_checkpoint(file, tmp_path, first):
    spoiled = range(first, first + 3)
    with pytest.raises(
        SensoriumError, match=r"not finite, 3 steps in a row.*lower train.learning_rate and resume"
    ) as caught:
        run(file, tmp_path / "a", spoiled=spoiled)
    kept = checkpoint.check(tmp_path / "a", {})
    assert f"is of step {kept}," in str(caught.value)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "a").values())
    steps, projector, _ = run(file, tmp_path / "a", resume=True)  # with pictures that are in order again
    assert steps == 8 and all(torch.isfinite(p).all() for p in projector.parameters())


def test_two_broken_steps_are_skipped(file, tmp_path):
    steps, projector, _ = run(file, tmp_path / "a", spoiled=(2, 3, 5, 6))
    assert steps == 8 and all(torch.isfinite(p).all() for p in projector.parameters())


@pytest.mark.parametrize(("steps", "said"), [(1, r"not finite, in step 0;"), (2, r"2 steps in a row up to step 1;")])
def test_a_run_without_a_finite_step_has_diverged_however_short_it_is(file, tmp_path, steps, said):
    with pytest.raises(SensoriumError, match=said + r".* is of step \d, lower train\.learning_rate"):
        run(file, tmp_path / "a", recipe(steps=steps), spoiled=range(steps))


@pytest.mark.parametrize("at", [0, 3])
def test_a_termination_does_not_wait_for_a_batch(file, tmp_path, at):
    """A batch may take minutes to make; the checkpoint is of the steps before it."""
    plan = recipe(schedule="constant", checkpoint_every=100)
    run(file, tmp_path / "whole", plan)
    taken, released, made = threading.Event(), threading.Event(), []

    class Slow(Stream):
        def batches(self, start, stop):
            return ahead(self.slowly(start, stop), 1)

        def slowly(self, start, stop):
            for step, batch in enumerate(super().batches(start, stop)):
                if step == at:
                    taken.wait(60)
                    os.kill(os.getpid(), signal.SIGTERM)
                    released.wait(60)
                made.append(step)
                yield batch

    def report(line):
        if line.step == at - 1:
            taken.set()

    if not at:
        taken.set()
    projector, llm, tokenizer = build(file)
    (tmp_path / "parts").mkdir()
    slow = task(projector, llm, Slow(tokenizer), plan)
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        loop.train_loop(slow, plan, tmp_path / "parts", stopping=stop, report=report)
    assert made == list(range(at))
    released.set()
    assert (tmp_path / "parts" / checkpoint.FILE).is_file() is bool(at)
    if at:
        assert checkpoint.check(tmp_path / "parts", {}) == at
        run(file, tmp_path / "parts", plan, resume=True)
        assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_stage_in_which_nothing_learns_is_refused(file, tmp_path):
    projector, llm, tokenizer = build(file, rank=0)
    for parameter in projector.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(SensoriumError, match="trains nothing"):
        loop.train_loop(task(projector, llm, Stream(tokenizer)), recipe(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_minutes_end_a_run(file, tmp_path):
    steps, _, _ = run(file, tmp_path / "a", recipe(steps=10_000, minutes=1e-6))
    assert steps in (0, 10)  # the clock is read every ten steps
    assert checkpoint.check(tmp_path / "a", {}) == steps


def test_the_schedule_warms_up_and_falls():
    rates = [loop.schedule(step, step / 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == max(rates[8:12])
    assert all(np.diff(rates[12:]) <= 0) and 0.03 <= rates[-1] < 0.035


@pytest.mark.parametrize(
    ("kind", "middle", "late"), [("linear", 0.515, 0.127), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.515)]
)
def test_every_schedule_warms_up_and_ends_where_it_should(kind, middle, late):
    assert loop.schedule(0, 0.0, 9, kind) == pytest.approx(0.1)
    assert loop.schedule(50, 0.5, 9, kind) == pytest.approx(middle)
    assert loop.schedule(90, 0.9, 9, kind) == pytest.approx(late)
    assert loop.schedule(100, 1.5, 9, kind) == pytest.approx(1.0 if kind == "constant" else loop.LAST)


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    run(file, output, recipe(steps=2), facts={"lora.rank": 2, "backbone": "a" * 64})
    return output


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"lora.rank": 4, "backbone": "a" * 64}, "lora.rank = 2, and now it is 4"),
        ({"lora.rank": 2, "backbone": "b" * 64}, "backbone = .aaaa.*now it is .bbbb"),
        ({"lora.rank": 2, "backbone": "a" * 64, "data.seed": 1}, "data.seed = none, and now it is 1"),
        ({"lora.rank": 2}, "backbone = .*none"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(trained, facts, reason):
    with pytest.raises(SensoriumError, match=reason) as caught:
        checkpoint.check(trained, facts)
    assert len(str(caught.value)) < 300


def test_a_checkpoint_with_other_tensors_is_refused(file, trained):
    for rank in (4, 0):
        projector, llm, _ = build(file, rank=rank)
        tensors = task(projector, llm).tensors()
        with pytest.raises(SensoriumError, match="other trained parts"):
            checkpoint.load(
                trained,
                tensors,
                loop.make_optimizer(task(projector, llm), recipe()),
                {"lora.rank": 2, "backbone": "a" * 64},
            )


def damage(data: bytes, how: str) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    meta = header["__metadata__"]
    if how == "no step":
        del meta["step"]
    elif how == "odd step":
        meta["step"] = "soon"
    elif how == "negative step":
        meta["step"] = "-4"
    elif how == "no facts":
        del meta["facts"]
    elif how == "odd facts":
        meta["facts"] = "[1]"
    elif how == "odd extra":
        meta["extra"] = "{"
    elif how == "no random state":
        header["gnr"] = header.pop("rng")
    elif how == "empty":
        return b""
    elif how == "cut":
        return data[: len(data) // 2]
    elif how == "cut in header":
        return data[: size // 2]
    elif how == "noise":
        return bytes(range(256)) * 40
    elif how == "huge header":
        return (1 << 62).to_bytes(8, "little") + data[8:]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    "how",
    ["no step", "odd step", "negative step", "no facts", "odd facts", "odd extra", "no random state", "empty", "cut",
     "cut in header", "noise", "huge header"],
)  # fmt: skip
def test_damaged_checkpoints_are_one_sentence(file, trained, tmp_path, how):
    (tmp_path / checkpoint.FILE).write_bytes(damage((trained / checkpoint.FILE).read_bytes(), how))
    projector, llm, _ = build(file)
    tensors = task(projector, llm).tensors()
    facts = {"lora.rank": 2, "backbone": "a" * 64}
    with pytest.raises(SensoriumError, match=r"is damaged \(.*\); delete it and train again\.$") as caught:
        checkpoint.load(tmp_path, tensors, loop.make_optimizer(task(projector, llm), recipe()), facts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fused", [True, None])
def test_the_count_of_steps_lies_where_the_optimizer_looks_for_it(tmp_path, fused):
    tensor = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.AdamW([tensor], fused=fused)
    tensor.sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path, 1, checkpoint.collect({"w": tensor}, optimizer), {})
    elsewhere = torch.empty(3, device="meta", requires_grad=True)  # as on a GPU
    resumed = torch.optim.AdamW([elsewhere], fused=fused)
    checkpoint.load(tmp_path, {"w": elsewhere}, resumed)
    found = {key: value.device.type for key, value in resumed.state[elsewhere].items()}
    assert found == {"exp_avg": "meta", "exp_avg_sq": "meta", "step": "meta" if fused else "cpu"}


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(SensoriumError, match="holds no checkpoint to resume from"):
        checkpoint.check(tmp_path, {})


def test_a_checkpoint_holds_no_frozen_weight(trained):
    names = {name.partition(".")[2] for name in weights(trained) if name.startswith("model.")}
    assert names and all("lora_" in name or name.startswith("projector.") for name in names)


def test_a_full_disk_keeps_the_previous_checkpoint(file, trained, tmp_path, monkeypatch):
    import shutil

    import safetensors.torch

    shutil.copy(trained / checkpoint.FILE, tmp_path)
    before = (tmp_path / checkpoint.FILE).read_bytes()

    def full(state, path, metadata):
        from pathlib import Path

        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    projector, llm, _ = build(file)
    tensors = task(projector, llm).tensors()
    state = checkpoint.collect(tensors, loop.make_optimizer(task(projector, llm), recipe()))
    with pytest.raises(SensoriumError, match=r"No space left on device.*make room and resume"):
        checkpoint.save(tmp_path, 9, state, {})
    assert (tmp_path / checkpoint.FILE).read_bytes() == before and len(list(tmp_path.iterdir())) == 1
