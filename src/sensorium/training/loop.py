"""The training loop: batches in, gradients shared between processes, schedule, checkpoints, a line of log every so often."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.training import checkpoint
from sensorium.training.data.stream import SampleStream
from sensorium.training.llama import Llama
from sensorium.training.objectives import next_token
from sensorium.training.recipe import TrainRecipe

LOG_EVERY = 20
CONCEPTS = ("keys.", "values")  # what starts from the frozen parts learns slower


@dataclass(frozen=True)
class Progress:
    """One line of the log."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    tokens_per_s: float
    minutes: float


def trained_tensors(projector: nn.Module, llm: Llama) -> dict[str, Tensor]:
    """Everything that learns, by name."""
    tensors: dict[str, Tensor] = {f"projector.{n}": p for n, p in projector.named_parameters() if p.requires_grad}
    tensors |= {f"lora.{n}": p for n, p in llm.named_parameters() if p.requires_grad}
    return tensors


def make_optimizer(tensors: dict[str, Tensor], recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW with one group per learning rate."""
    rates = recipe.learning_rate
    groups: dict[float, list[Tensor]] = {}
    for name, tensor in tensors.items():
        concept = name.startswith("projector.") and name.removeprefix("projector.").startswith(CONCEPTS)
        rate = rates.lora if name.startswith("lora.") else rates.concepts if concept else rates.projector
        groups.setdefault(rate, []).append(tensor)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "peak": rate} for rate, params in groups.items()],
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )


def schedule(step: int, done: float, warmup: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0.03 over the share ``done`` of the run."""
    return min(1.0, (step + 1) / (warmup + 1)) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def share_gradients(tensors: dict[str, Tensor], world: int) -> None:
    """Average gradients over processes, all in one message."""
    grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in tensors.values()]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for tensor, grad in zip(tensors.values(), grads):
        tensor.grad = flat[at : at + grad.numel()].view_as(grad)
        at += grad.numel()


def train_loop(
    projector: nn.Module,
    llm: Llama,
    stream: SampleStream,
    recipe: TrainRecipe,
    output: Path,
    *,
    rank: int = 0,
    world: int = 1,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
) -> int:
    """Train until the recipe's steps or minutes are used up.

    Args:
        projector, llm: the modules; only what requires gradients changes.
        stream: this rank's batches.
        output: where checkpoints and ``log.jsonl`` go.
        report: called by rank 0 every ``LOG_EVERY`` steps.
        snapshot: called by rank 0 after each checkpoint, to evaluate or export.

    Returns:
        The number of steps taken in all.

    Raises:
        SensoriumError: nothing would be trained, or the loss is not finite three times in a row.
    """
    tensors = trained_tensors(projector, llm)
    if not tensors:
        raise SensoriumError("this stage trains nothing: every part is frozen; let the projector or a LoRA learn.")
    optimizer = make_optimizer(tensors, recipe)
    first, before = 0, 0.0
    if resume:
        first, extra = checkpoint.load(output, tensors, optimizer)
        before = float(extra.get("minutes", 0.0))
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
    log = (output / "log.jsonl").open("a", encoding="utf-8") if rank == 0 else None
    began, losses, tokens, broken, step = time.monotonic(), [], 0, 0, first
    minutes = before
    for step, (features, rows) in enumerate(stream.batches(first, recipe.steps), start=first):
        if step % 10 == 0:
            minutes = before + (time.monotonic() - began) / 60
            if world > 1:  # all ranks follow rank 0's clock, so that they stop at the same step
                clock = torch.tensor([minutes], dtype=torch.float64)
                dist.broadcast(clock, 0)
                minutes = float(clock)
        done = max(step / recipe.steps, minutes / recipe.minutes if recipe.minutes else 0.0)
        if done >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, done, recipe.warmup)
        loss, _ = next_token(llm, projector(torch.from_numpy(features)), rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            share_gradients(tensors, world)
        norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), recipe.clip)
        if torch.isfinite(norm):
            optimizer.step()
            broken = 0
        else:
            broken += 1
            if broken == 3:
                raise SensoriumError(
                    f"the gradient is not finite at step {step}, three times in a row; the last checkpoint is in {output}, "
                    "lower the learning rate and resume."
                )
        losses.append(float(loss.detach()))
        tokens += int((rows.branch >= 0).sum()) * world
        if log and step % LOG_EVERY == 0:
            mean = sum(losses[-LOG_EVERY:]) / len(losses[-LOG_EVERY:])
            elapsed = time.monotonic() - began
            line = Progress(step, recipe.steps, mean, float(norm), tokens / elapsed, before + elapsed / 60)
            log.write(json.dumps(line.__dict__) + "\n")
            log.flush()
            if report:
                report(line)
        if (step + 1) % recipe.checkpoint_every == 0 and rank == 0:
            checkpoint.save(output, step + 1, tensors, optimizer, {"minutes": before + (time.monotonic() - began) / 60})
            if snapshot:
                snapshot(step + 1)
    else:
        step += 1
    if rank == 0:
        checkpoint.save(output, step, tensors, optimizer, {"minutes": before + (time.monotonic() - began) / 60})
    if log:
        log.close()
    return step
