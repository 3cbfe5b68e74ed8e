"""The training loop: batches in, gradients shared between processes, schedule, checkpoints, a line of log at times.

Any number of processes takes the very steps that one would: rows are divided among them, and what they share is the sum
over all targets, not the mean of their means. What is trained, on what and towards what is a `Task`; the loop knows no
more of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.training import checkpoint
from sensorium.training.recipe import TrainRecipe

LOG = "log.jsonl"
BROKEN_STEPS = 3  # in a row without a finite gradient: then the run has diverged


@dataclass(frozen=True)
class Loss:
    """What a task makes of a batch.

    Attributes:
        mean: the loss, averaged over this process's targets.
        weight: the sum of the weights that it averages over.
        tokens: positions that were computed, for the log.
        parts: further numbers for the log, by name.
    """

    mean: Tensor
    weight: float
    tokens: int
    parts: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What the loop trains: tensors, their rates, batches and a loss (open_clip's TrainingTask in spirit)."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learns, by name; what a checkpoint holds."""

    def rate(self, name: str) -> float:
        """The peak learning rate of a tensor."""

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """This process's share of steps ``start`` to ``stop``: a function of the step alone."""

    def loss(self, batch: Any) -> Loss:
        """Forward, no backward."""

    def stepped(self) -> None:
        """Called after each step of the optimizer, to clamp what must stay in a range."""


@dataclass(frozen=True)
class Progress:
    """One line of the log."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    tokens_per_s: float
    minutes: float
    rate: float = 0.0  # of the schedule, 0 to 1
    parts: Mapping[str, float] = field(default_factory=dict)


def make_optimizer(task: Task, recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW with one group per learning rate."""
    groups: dict[float, list[Tensor]] = {}
    for name, tensor in task.tensors().items():
        groups.setdefault(task.rate(name), []).append(tensor)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "peak": rate} for rate, params in groups.items()],
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )


def schedule(step: int, done: float, warmup: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0.03 over the share ``done`` of the run."""
    return min(1.0, (step + 1) / (warmup + 1)) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def share(tensors: Mapping[str, Tensor], loss: float, weight: float, stop: bool) -> tuple[float, bool]:
    """Turn each process's gradient into that of all targets, in one message; the same for the loss.

    A process with more targets counts for more, so the step is the one that a single process would take. The message
    also carries whether any process was asked to stop, so that all stop behind the same step.

    Returns:
        The mean loss over all targets, and whether to stop.
    """
    grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in tensors.values()]
    ours = torch.tensor([loss * weight, weight, float(stop)], dtype=torch.float32, device=grads[0].device)
    flat = torch.cat([*(g.reshape(-1) * weight for g in grads), ours])
    dist.all_reduce(flat)
    total_loss, total, stops = (float(v) for v in flat[-3:])
    flat /= total
    at = 0
    for tensor, grad in zip(tensors.values(), grads):
        tensor.grad = flat[at : at + grad.numel()].view_as(grad)
        at += grad.numel()
    return total_loss / total, stops > 0


def train_loop(
    task: Task,
    recipe: TrainRecipe,
    output: Path,
    *,
    rank: int = 0,
    world: int = 1,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
) -> int:
    """Train until the recipe's steps or minutes are used up.

    Args:
        task: what is trained, on what and towards what.
        recipe: how long and how fast.
        output: where checkpoints and ``log.jsonl`` go.
        resume: go on from the checkpoint in ``output``.
        facts: what a checkpoint must have in common with the run that resumes it.
        stopping: asked after each step; once true, a checkpoint is written and the run ends.
        report: called by rank 0 every ``recipe.log_every`` steps.
        snapshot: called by rank 0 after each periodic checkpoint, to evaluate or export.

    Returns:
        The number of steps taken in all.

    Raises:
        SensoriumError: nothing would be trained, the checkpoint does not fit, or the gradient is not finite three times
            in a row; then the last checkpoint holds finite weights.
        KeyboardInterrupt: ``stopping`` became true; a checkpoint was written.
    """
    tensors = task.tensors()
    if not tensors:
        raise SensoriumError("This stage trains nothing: every part is frozen; let the projector or a LoRA learn.")
    optimizer = make_optimizer(task, recipe)
    taken, before = 0, 0.0
    if resume:
        taken, extra = checkpoint.load(output, tensors, optimizer, facts)
        before = float(extra.get("minutes", 0.0))
    log = _open_log(output / LOG, taken) if rank == 0 else None
    began, losses, tokens, broken, saved, minutes = time.monotonic(), [], 0, 0, taken if resume else -1, before

    def save() -> None:
        nonlocal saved
        if rank == 0 and saved != taken:
            spent = before + (time.monotonic() - began) / 60
            checkpoint.save(output, taken, tensors, optimizer, {"minutes": spent}, facts)
            saved = taken

    try:
        for step, batch in enumerate(task.batches(taken, recipe.steps), start=taken):
            if step % 10 == 0:
                minutes = _agreed(before + (time.monotonic() - began) / 60, world)
            done = max(step / recipe.steps, minutes / recipe.minutes if recipe.minutes else 0.0)
            if done >= 1.0:
                break
            rate = schedule(step, done, recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            loss = task.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.mean.backward()
            mean, stop = float(loss.mean.detach()), stopping()
            if world > 1:
                mean, stop = share(tensors, mean, loss.weight, stop)
            norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), recipe.clip)
            if torch.isfinite(norm):
                optimizer.step()
                task.stepped()
                broken = 0
            else:
                broken += 1
            taken = step + 1
            losses.append(mean)
            tokens += loss.tokens * world
            if log and (step % recipe.log_every == 0 or taken == recipe.steps):
                elapsed, recent = time.monotonic() - began, losses[-recipe.log_every :]
                loss_now = sum(recent) / len(recent)
                line = Progress(
                    step, recipe.steps, loss_now, float(norm), tokens / elapsed, before + elapsed / 60, rate, loss.parts
                )
                _write(log, line, report)
            if broken == BROKEN_STEPS:
                if saved < 0:
                    save()  # the weights are those before the broken steps, which were skipped
                raise SensoriumError(
                    f"The gradient is not finite, {BROKEN_STEPS} steps in a row up to step {step}; the checkpoint in "
                    f"{output} is of step {max(saved, 0)}, lower train.learning_rate and resume."
                )
            if stop:
                save()
                raise KeyboardInterrupt
            if taken % recipe.checkpoint_every == 0:
                save()
                if snapshot and rank == 0:
                    snapshot(taken)
        save()
    finally:
        if log:
            log.close()
    return taken


def _agreed(minutes: float, world: int) -> float:
    """Rank 0's clock, which all follow, so that they stop at the same step."""
    if world == 1:
        return minutes
    clock = torch.tensor([minutes], dtype=torch.float64)
    dist.broadcast(clock, 0)
    return float(clock)


def _open_log(path: Path, first: int) -> IO[str]:
    """The log from step ``first`` on; what an interrupted run wrote beyond its last checkpoint is dropped."""
    kept = []
    if first and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < first:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # the end of a line was lost when the run was killed
                pass
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _write(log: IO[str], line: Progress, report: Callable[[Progress], None] | None) -> None:
    numbers = {**{k: v for k, v in line.__dict__.items() if k != "parts"}, **line.parts}
    values = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    log.write(json.dumps(values) + "\n")
    log.flush()
    if report:
        report(line)
