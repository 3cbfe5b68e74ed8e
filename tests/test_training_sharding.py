"""The model divided among two processes (FSDP2): the losses of one, half of its memory, the same checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny

torch = pytest.importorskip("torch")

import tiny_ranks  # noqa: E402
from sensorium.errors import UsageError  # noqa: E402
from sensorium.training import checkpoint, loop, sharding  # noqa: E402
from test_training_loop import CELLS, DIM, ROWS, TOKENS, Stream, build, losses, recipe, task, weights  # noqa: E402

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharding") / "llm.gguf"
    tiny.write_gguf(path, np.random.default_rng(0))
    return path


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory):
    """The losses and the checkpoint of one process."""
    return run(0, file, tmp_path_factory.mktemp("alone"), "none", world=1)


def run(rank, file, output, how, *, world=2, resume=False, stop=None, spoiled=()):
    """Train as one of ``world`` processes; returns its losses, shares of frozen weights, and a last look at tensors."""
    output.mkdir(exist_ok=True)
    projector, llm, tokenizer = build(file)
    frozen = sum(p.numel() for p in llm.blocks.parameters() if not p.requires_grad)
    shards = sharding.Sharded(llm, projector, torch.device("cpu")) if how == "full" else None
    own = sum(sharding.mine(p).numel() for p in llm.blocks.parameters() if not p.requires_grad)
    asked = iter([False] * stop + [True]) if stop else None
    try:
        loop.train_loop(
            task(projector, llm, Stream(tokenizer, rank, world, spoiled)), recipe(), output, rank=rank, world=world,
            resume=resume, stopping=(lambda: next(asked)) if asked else (lambda: False),
        )  # fmt: skip
    except KeyboardInterrupt:
        assert stop
    if shards:
        with shards.gathered() as twin:
            held = {"projector": {n: t.detach().numpy() for n, t in twin.state_dict().items()}}
            held["lora"] = {n: t.numpy() for n, t in llm.lora_state().items()} if rank == 0 else {}
            assert not any(isinstance(p, sharding.DTensor) for p in twin.parameters())
    else:
        held = {"projector": {n: t.detach().numpy() for n, t in projector.state_dict().items()}}
        held["lora"] = {n: t.numpy() for n, t in llm.lora_state().items()}
    norms = [line["gradient_norm"] for line in map(json.loads, (output / loop.LOG).read_text().splitlines())]
    return {"losses": losses(output), "norms": norms, "share": own / frozen, "held": held, "output": output}


def assert_close(one, two):
    assert one["losses"].keys() == two["losses"].keys()
    np.testing.assert_allclose(list(two["losses"].values()), list(one["losses"].values()), rtol=1e-4)
    np.testing.assert_allclose(two["norms"], one["norms"], rtol=1e-3)  # AdamW would hide a wrong scale
    for part in ("projector", "lora"):
        for name, values in one["held"][part].items() if two["held"][part] else ():
            # Adam turns rounding into steps of its own where a gradient is nearly zero
            np.testing.assert_allclose(two["held"][part][name], values, atol=1e-3)


def test_a_divided_model_takes_the_steps_of_one_process(file, alone, tmp_path):
    both = tiny_ranks.together(run, file, tmp_path / "two", "full")
    for rank in both:
        assert_close(alone, rank)
        assert 0.45 < rank["share"] < 0.55
    one, two = weights(alone["output"]), weights(tmp_path / "two")
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in two.items()}
    from safetensors.torch import load_file

    assert len(load_file(tmp_path / "two" / checkpoint.FILE)["rng"]) == 2  # of each process


@pytest.mark.parametrize("first", ["full", "none"])
def test_a_divided_run_is_resumed_whole_and_the_other_way_round(file, alone, tmp_path, first):
    worlds = {"full": 2, "none": 1}
    second = "none" if first == "full" else "full"
    for how, options in ((first, {"stop": 4}), (second, {"resume": True})):
        if worlds[how] == 1:
            done = run(0, file, tmp_path / "parts", how, world=1, **options)
        else:
            done = tiny_ranks.together(_with, file, tmp_path / "parts", how, options)[0]
    assert_close(alone, done)


def _with(rank, file, output, how, options):
    return run(rank, file, output, how, **options)


def _stages(rank, file):
    """Gradients in a stage that trains the projector alone, and in one that trains the LoRA alone."""
    projector, llm, tokenizer = build(file)
    sharding.Sharded(llm, projector, torch.device("cpu"))
    stream = Stream(tokenizer, rank, 2)
    features, rows, _ = next(stream.batches(0, 1))
    seen = []
    for learns in ("projector", "lora", "projector"):
        for parameter in projector.parameters():
            parameter.requires_grad_(learns == "projector")
        for name, parameter in llm.named_parameters():
            parameter.requires_grad_(learns == "lora" and ".lora_" in name)
        made = task(projector, llm, stream)
        loss = made.loss((features, rows, None))
        loss.mean.backward()
        own = {n for n, t in made.tensors().items() if t.grad is not None}
        extra = sum(p.grad is not None for p in (*projector.parameters(), *llm.parameters())) - len(own)
        seen.append((learns, sorted({name.partition(".")[0] for name in own}), extra))
        for parameter in (*projector.parameters(), *llm.parameters()):
            parameter.grad = None
    return seen


def test_what_learns_may_change_from_stage_to_stage(file):
    for seen in tiny_ranks.together(_stages, file):
        assert seen == [("projector", ["projector"], 0), ("lora", ["lora"], 0), ("projector", ["projector"], 0)]


def test_a_spoiled_batch_of_a_divided_model_is_skipped_by_all(file, tmp_path):
    both = tiny_ranks.together(_with, file, tmp_path / "two", "full", {"spoiled": (2, 5)})
    assert all(np.isfinite(values).all() for values in both[0]["held"]["projector"].values())
    assert sum(loss is None for loss in both[0]["losses"].values()) == 2


# Media in the batch of one process alone ------------------------------------------------------------------------------


class Mixed:
    """Rows whose media stand with one process, with the other, with both, with none; by step."""

    def __init__(self, tokenizer, rank, world):
        from sensorium.training.data.formats.encode import encode

        self.tokenizer, self.encode, self.rank, self.rows = tokenizer, encode, rank, ROWS // world

    def sample(self, step, row):
        from sensorium.messages import Message
        from sensorium.training.data.formats.sample import MediaRef, Sample

        kind = step % 4
        pictured = {0: row < ROWS // 2, 1: row >= ROWS // 2, 2: True, 3: False}[kind]
        content = [*([MediaRef(f"{step}.{row}")] if pictured else []), f"What is {row}?"]
        turns = (Message("user", content), Message("assistant", f"It is {step} or {row}."))
        return self.encode(Sample(f"{step}.{row}", turns, "here"), self.tokenizer, TOKENS)

    def batches(self, start, stop):
        from sensorium.training.data.formats.packing import pack

        for step in range(start, stop):
            mine = range(self.rank * self.rows, (self.rank + 1) * self.rows)
            rows = pack([[self.sample(step, row)] for row in mine], 120)
            random = [np.random.default_rng([step, int(m.name.partition(".")[2])]) for m in rows.media]
            features = [r.normal(size=(CELLS, DIM)).astype(np.float32) for r in random]
            yield np.stack(features) if features else np.zeros((0, CELLS, DIM), np.float32), rows


def mixed(rank, file, output, how, world=2):
    from sensorium.training.data.formats.task import PackedTask

    output.mkdir(exist_ok=True)
    projector, llm, tokenizer = build(file)
    if how == "full":
        sharding.Sharded(llm, projector, torch.device("cpu"))
    stream = Mixed(tokenizer, rank, world)
    given = PackedTask(projector, llm, stream, recipe().learning_rate)
    loop.train_loop(given, recipe(), output, rank=rank, world=world)
    return losses(output), [len(rows.media) for _, rows in stream.batches(0, 4)]


@pytest.mark.parametrize("how", ["none", "full"])
def test_media_in_the_batch_of_one_process_alone_do_not_hang_the_other(file, tmp_path, how):
    one, _ = mixed(0, file, tmp_path / "one", "none", world=1)
    (two, first), (_, second) = tiny_ranks.together(mixed, file, tmp_path / "two", how)
    assert first == [2, 0, 2, 0] and second == [0, 2, 2, 0]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


# Settings -------------------------------------------------------------------------------------------------------------


def test_the_settings_of_accelerate_are_taken_or_refused(monkeypatch):
    pytest.importorskip("accelerate")
    assert sharding.accelerate_settings() == {"reshard_after_forward": True}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert sharding.accelerate_settings() == {"reshard_after_forward": False}
    for name, value, reason in [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing"),
    ]:
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(UsageError, match=reason):
                sharding.accelerate_settings()
