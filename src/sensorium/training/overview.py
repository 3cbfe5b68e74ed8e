"""What is shown before a stage's first step: every part, what learns, the memory it needs and how long it will take."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.training.backbone import part_of
from sensorium.training.launch import on_this_machine
from sensorium.training.objectives.cross_entropy import CHUNK
from sensorium.training.recipe import StageRecipe

if TYPE_CHECKING:
    from sensorium.training.backbone import Backbone
    from sensorium.training.frozen import Frozen
    from sensorium.training.recipe import Recipe

ADAM = 8  # bytes of optimizer state for each trained parameter: two moments in float32
KEPT = 34  # numbers of width `dim` that a block keeps of each token for the backward pass, its feed-forward included
EFFICIENCY = 0.35  # of a large matrix product's speed that a whole step reaches; measured on 2 cores


def overview_of(
    plan: Recipe, stage: StageRecipe, frozen: Frozen, projector: nn.Module, llm: Backbone, number: int
) -> str:
    """The table of a stage.

    Raises:
        SensoriumError: nothing would learn.
    """
    learns = trained(projector) + trained(llm)
    if not learns:
        raise SensoriumError(
            f"Stage {stage.name} trains nothing: every part is frozen; let the projector or a LoRA learn."
        )
    stages = plan.plan()
    heading = [f"Stage {number + 1} of {len(stages)}, {stage.name}: {stage.objective.kind}"] if plan.stages else []
    needs, has, train = memory_here(stage, projector, llm), available(llm.device), stage.train
    facts = [
        f"{many(train.steps, 'step')} of {many(train.rows, 'row')}, {train.rows * train.row_tokens:,} tokens a step, "
        f"{train.precision}, {many(train.processes, 'process', 'es')}{divided_how(stage)}",
        f"memory: about {needs / 1e9:.1f} GB needed" + (f", {has / 1e9:.1f} GB available" if has else ""),
        f"time: about {duration(stage, llm)}",
    ]
    if train.warmup > train.steps:
        facts.append(f"note: train.warmup ({train.warmup}) is longer than the stage, so no rate ever reaches its peak")
    if has and needs > has:
        facts.append("warning: this may not fit; lower train.rows, train.row_tokens or train.processes")
    return "\n".join([*heading, parts_table(frozen, projector, llm), *facts])


def many(number: int, what: str, ending: str = "s") -> str:
    """A number of things, for people."""
    return f"{number} {what}{ending if number != 1 else ''}"


def divided_how(stage: StageRecipe) -> str:
    """What `sharding: full` comes to."""
    if stage.train.sharding == "none":
        return ""
    if stage.train.processes == 1:
        return "; train.sharding=full divides nothing in one process"
    return ", each keeps its share of the model"


def check_memory(stage: StageRecipe, projector: nn.Module, llm: Backbone) -> None:
    """Refuse a stage that this machine cannot hold, whatever else runs on it.

    Raises:
        SensoriumError: it needs more than there is; one sentence.
    """
    needs, has, train = memory_here(stage, projector, llm), total(llm.device), stage.train
    if not has or needs <= has:
        return
    least = stage.model_copy(update={"train": train.model_copy(update={"rows": train.processes, "row_tokens": 32})})
    if memory_here(least, projector, llm) < has:
        instead = f"lower train.rows ({train.rows}) or train.row_tokens ({train.row_tokens})"
    elif train.processes > 1:
        instead = f"lower train.processes ({train.processes}), or divide the model with train.sharding=full"
    else:
        instead = "train fewer parts, or choose a smaller backbone"
    where = "GPU has" if llm.device.type == "cuda" else "machine has"
    raise SensoriumError(
        f"Stage {stage.name} needs about {needs / 1e9:.1f} GB of memory, and this {where} {has / 1e9:.1f} GB; "
        f"{instead}."
    )


def memory_here(stage: StageRecipe, projector: nn.Module, llm: Backbone) -> float:
    """Bytes that a stage needs, roughly, of what `available` and `total` speak of: one GPU, or all of this machine."""
    processes = stage.train.processes
    here = 1 if llm.device.type == "cuda" else on_this_machine(0, processes)[1]
    return memory(stage, projector, llm) * here / processes


def total(device: torch.device) -> float:
    """Bytes of memory that a GPU has, or this machine; 0 where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError, AttributeError):
        return 0.0


def parts_table(frozen: Frozen, projector: nn.Module, llm: Backbone) -> str:
    """Every part with its parameters, frozen or trained, as lines of text."""
    declared = frozen.composition.spec.encoders["image"]
    size = f"{frozen.encoder.stat().st_size / 1e6:.1f} MB"
    parts: dict[str, list[nn.Parameter]] = {"backbone": [], "lora": [], "tokens": []}
    for name, parameter in llm.named_parameters():
        parts[part_of(name)].append(parameter)
    sizes = {part: sum(p.numel() for p in held) for part, held in parts.items()}
    how = {part: "trained" if any(p.requires_grad for p in held) else "frozen" for part, held in parts.items()}
    dtype = str(parts["backbone"][0].dtype).removeprefix("torch.")
    shape = f"{frozen.backbone_name}, {llm.shape.layers} layers of width {llm.shape.dim}"
    kind = type(projector).__name__.removeprefix("FSDP")
    rows: list[tuple[str, int | str, str, str, str]] = [
        ("encoders.image", "", "frozen", "", f"{declared.kind}, {size}, run by ONNX Runtime, features cached"),
        ("backbone", sizes["backbone"], how["backbone"], dtype, shape),
        ("lora", sizes["lora"], how["lora"], "float32", "active only in conversations that hold media"),
        ("tokens", sizes["tokens"], how["tokens"], "float32", "new rows of the backbone's vocabulary"),
        ("projectors.image", trained(projector), "trained", "float32", kind),
        ("projectors.image", count(projector) - trained(projector), "frozen", "float32", kind),
    ]
    return parts_lines(rows)


def parts_lines(rows: Sequence[tuple[str, int | str, str, str, str]]) -> str:
    """Rows of (part, parameters, frozen or trained, dtype, what) as lines of text; a part of none is left out."""
    lines = [f"{'part':<18}{'parameters':>14}  {'state':<8} {'dtype':<9} what"]
    for name, number, state, kept, what in rows:
        if number != 0:
            shown = f"{number:,}" if isinstance(number, int) else ""
            lines.append(f"{name:<18}{shown:>14}  {state:<8} {kept:<9} {what}")
    return "\n".join(lines)


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def trained(module: nn.Module) -> int:
    """Parameters of a module that learn."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def memory(stage: StageRecipe, projector: nn.Module, llm: Backbone) -> float:
    """Bytes that all processes need at their peak, roughly: weights, gradients, optimizer, what backward keeps."""
    width = 2 if llm.dtype == torch.bfloat16 else 4
    weights = sum(p.numel() * p.element_size() for m in (projector, llm) for p in m.parameters())
    # weights in float32 that run in bf16 are cast for each product, and backward keeps the casts
    weights += sum(width * p.numel() for n, p in llm.named_parameters() if casts(llm, n, p))
    shared = stage.train.processes > 1 and stage.train.sharding == "none"  # then gradients are sent as one message
    learning = (trained(projector) + trained(llm)) * (4 + ADAM + (4 if shared else 0))
    tokens = stage.train.rows / stage.train.processes * stage.train.row_tokens
    shape = llm.shape
    block = KEPT * shape.dim + 4 * shape.heads * stage.train.row_tokens  # the scores are kept in float32, too
    activations = tokens * shape.layers * block * width
    targets = min(0.4 * tokens, CHUNK[llm.device.type])  # at most two fifths of the positions, so many at a time
    logits = targets * shape.vocab * 4 * 3
    copies = 1 if stage.train.sharding == "full" else stage.train.processes
    return copies * (weights + learning) + stage.train.processes * (activations + logits + 0.6e9)


def casts(llm: Backbone, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is cast to the dtype of the activations before it is used."""
    return part_of(name) == "backbone" and parameter.ndim > 1 and parameter.dtype != llm.dtype


def available(device: torch.device) -> float:
    """Bytes of memory that may be used, of a GPU or of this machine; 0 where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (OSError, ValueError, AttributeError):
        return 0.0


def duration(stage: StageRecipe, llm: Backbone) -> str:
    """How long a stage takes, from the speed of a matrix product here and now; no longer than it is allowed."""
    blocks = sum(p.numel() for n, p in llm.blocks.named_parameters() if ".lora_" not in n)
    # forward, the backward pass to the activations, and a gradient of their own for weights that learn
    learns = any(p.requires_grad and part_of(n) == "backbone" for n, p in llm.named_parameters())
    flops = (6.0 if learns else 4.0) * blocks * stage.train.rows * stage.train.row_tokens
    flops += (6 if learns else 4) * 0.4 * stage.train.rows * stage.train.row_tokens * llm.shape.dim * llm.shape.vocab
    minutes = flops * stage.train.steps / (speed(llm.dtype) * EFFICIENCY) / 60
    limit = stage.train.minutes
    shown = f"{minutes:.0f} min" if minutes >= 1 else "a minute at most"
    return f"{limit:g} min (its limit; all steps would take {shown})" if limit and limit < minutes else shown


def speed(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product in this process."""
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    a @ b
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 0.1:
        a @ b
        rounds += 1
    return rounds * 2 * 512 * 1024 * 1024 / (time.perf_counter() - began)
