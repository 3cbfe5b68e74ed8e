"""The training loop: batches in, gradients shared between processes, schedule, checkpoints, a line of log at times.

Any number of processes takes the very steps that one would: rows are divided among them, and what they share is the sum
over all targets, not the mean of their means. What is trained, on what and towards what is a `Task`; the loop knows no
more of it. Whatever ends a run, all processes end behind the same step, and the last checkpoint is whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.training import checkpoint
from sensorium.training.agreement import Failed, Stopped, agreed, gathered, next_together, raise_together
from sensorium.training.gradients import clip, share, weighted
from sensorium.training.logs import Logger, Logs
from sensorium.training.logs.jsonl import LOG
from sensorium.training.logs.line import Progress
from sensorium.training.processes import StopRequest
from sensorium.training.recipe import TrainRecipe
from sensorium.training.sharding import divided
from sensorium.training.values import Limits

__all__ = ["LOG", "Loss", "Positioned", "Progress", "Task", "make_optimizer", "schedule", "share", "train_loop"]

LAST = 0.03  # of the peak rate, at the end
DECAY = 0.2  # share of a run in which the schedule wsd falls
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


@runtime_checkable
class Positioned(Protocol):
    """A task whose data has a position, so that a resumed run need not read again what it has seen."""

    def position(self) -> dict[str, Any]:
        """Behind the batch that was given last; small, ready for JSON."""

    def seek(self, positions: list[dict[str, Any]]) -> None:
        """Go on from the positions of all processes of the run that wrote them, by rank."""


def make_optimizer(task: Task, recipe: TrainRecipe | Limits) -> torch.optim.AdamW:
    """AdamW with one group per learning rate, divided tensors apart from whole ones."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, tensor in task.tensors().items():
        groups.setdefault((task.rate(name), divided({name: tensor})), []).append(tensor)
    whole = not any(apart for _, apart in groups)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "peak": rate} for (rate, _), params in groups.items()],
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
        fused=whole or None,  # in one pass over memory: four times as fast on a CPU
    )


def schedule(step: int, done: float, warmup: int, kind: str = "cosine") -> float:
    """Share of the peak rate: linear warm-up, then down to `LAST`, as the share ``done`` of the run goes from 0 to 1.

    ``cosine`` and ``linear`` fall all the way, ``constant`` never does, and ``wsd`` (warm up, stay, decay; MiniCPM,
    arXiv 2404.06395) falls in a line over the last fifth, so a run can be made longer from before it.
    """
    done = min(done, 1.0)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
        "wsd": min(1.0, (1 - done) / DECAY),
    }[kind]
    return min(1.0, (step + 1) / (warmup + 1)) * (LAST + (1 - LAST) * left)


def train_loop(
    task: Task,
    recipe: TrainRecipe | Limits,
    output: Path,
    *,
    rank: int = 0,
    world: int = 1,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    loggers: Callable[[int], Mapping[str, Logger]] | None = None,
) -> int:
    """Train until the recipe's steps or minutes are used up.

    Args:
        task: what is trained, on what and towards what.
        recipe: how long and how fast.
        output: where checkpoints and ``log.jsonl`` go.
        resume: go on from the checkpoint in ``output``.
        facts: what a checkpoint must have in common with the run that resumes it.
        stopping: asked after each step; once true, a checkpoint is written and the run ends. A `StopRequest` also ends
            the wait for a batch.
        report: called by rank 0 every ``recipe.log_every`` steps.
        snapshot: called after each periodic checkpoint, to evaluate or export: by every process where tensors are
            divided among them, else by rank 0.
        loggers: opens further logs at the step that comes next; called by rank 0.

    Returns:
        The number of steps taken in all.

    Raises:
        SensoriumError: nothing would be trained, the checkpoint does not fit, a batch cannot be made (then a checkpoint
            of the steps before it is written), or the gradient is not finite three times in a row or in any step;
            then the last checkpoint holds finite weights.
        KeyboardInterrupt: ``stopping`` became true; a checkpoint was written.
    """
    tensors = task.tensors()
    if not tensors:
        raise SensoriumError("This stage trains nothing: every part is frozen; let the projector or a LoRA learn.")
    optimizer = make_optimizer(task, recipe)
    taken, before = 0, 0.0
    if resume:
        taken, extra = checkpoint.load(output, tensors, optimizer, facts, rank)
        before = float(extra.get("minutes", 0.0))
        if isinstance(task, Positioned) and "data" in extra:
            task.seek(extra["data"])
    together = world > 1 and divided(tensors)  # then a process alone can write nothing
    trouble: SensoriumError | None = None
    began, losses, tokens, broken, saved, minutes = time.monotonic(), [], 0, 0, taken if resume else -1, before

    def position() -> dict[str, Any] | None:
        return task.position() if isinstance(task, Positioned) else None

    at = position()  # behind the last step; the data may be a batch further when a wait for it is interrupted

    def save() -> None:
        nonlocal saved
        if saved != taken:
            state = checkpoint.collect(tensors, optimizer, world)
            extra: dict[str, Any] = {"minutes": before + (time.monotonic() - began) / 60}
            if at is not None:
                extra["data"] = gathered(at, world)
            if rank == 0:
                checkpoint.save(output, taken, state, extra, facts)
            saved = taken

    def attempt(work: Callable[[], None]) -> None:
        """Do what one process may fail at alone, and have all of them know of it at the next occasion."""
        nonlocal trouble
        try:
            work()
        except SensoriumError as error:
            trouble = trouble or error
        except OSError as error:
            place = error.filename or output
            trouble = trouble or SensoriumError(f"{place} cannot be written ({error.strerror}); make room. {kept()}")

    def kept() -> str:
        return f"The checkpoint in {output} is of step {saved}." if saved >= 0 else "There is no checkpoint yet."

    waiting = stopping.waiting if isinstance(stopping, StopRequest) else nullcontext

    def diverged() -> SensoriumError:
        if saved < 0:
            attempt(save)  # the weights are those before the broken steps, which were skipped
            raise_together(trouble, world)
        steps = f"{broken} steps in a row up to step" if broken > 1 else "in step"
        return SensoriumError(
            f"The gradient is not finite, {steps} {taken - 1}; the checkpoint in {output} is of step {max(saved, 0)}, "
            "lower train.learning_rate and resume."
        )

    log = Logs(output, taken, report, loggers) if rank == 0 else None
    batches = task.batches(taken, recipe.steps)
    try:
        for step in range(taken, recipe.steps):
            if step % 10 == 0:
                minutes = agreed(before + (time.monotonic() - began) / 60, world)
            done = max(step / recipe.steps, minutes / recipe.minutes if recipe.minutes else 0.0)
            if done >= 1.0:
                break
            try:
                batch = next_together(batches, trouble, world, waiting)
            except Stopped:
                if taken:
                    attempt(save)
                    raise_together(trouble, world)
                raise KeyboardInterrupt from None
            except Failed as failure:
                if taken:
                    attempt(save)
                    raise_together(trouble, world)
                raise SensoriumError(f"{failure} {kept()}") from None
            if batch is None:
                break
            rate = schedule(step, done, recipe.warmup, recipe.schedule)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            loss = task.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            weighted(loss.mean, loss.weight, tensors).backward()
            mean, stop = float(loss.mean.detach()), stopping()
            if world > 1:
                mean, stop = share(tensors, mean, loss.weight, stop)
            norm = clip(list(tensors.values()), recipe.clip)
            if torch.isfinite(norm):
                optimizer.step()
                task.stepped()
                broken = 0
            else:
                broken += 1
            taken, at = step + 1, position()
            losses.append(mean)
            tokens += loss.tokens * world
            if log and (step % recipe.log_every == 0 or taken == recipe.steps):
                elapsed, recent = time.monotonic() - began, losses[-recipe.log_every :]
                line = Progress(
                    step, recipe.steps, sum(recent) / len(recent), float(norm), tokens / elapsed,
                    before + elapsed / 60, rate, loss.parts,
                )  # fmt: skip
                attempt(lambda log=log, line=line: log.write(line))  # type: ignore[misc]
            if broken == BROKEN_STEPS:
                raise diverged()
            if stop:
                attempt(save)
                raise_together(trouble, world)
                raise KeyboardInterrupt
            if taken % recipe.checkpoint_every == 0:
                attempt(save)
                if snapshot and (rank == 0 or together):
                    attempt(lambda taken=taken: snapshot(taken))  # type: ignore[misc]
        if broken and broken == taken:  # a run so short that it had no other steps
            raise diverged()
        attempt(save)
        raise_together(trouble, world)
    finally:
        if log:
            log.close()
    return taken
