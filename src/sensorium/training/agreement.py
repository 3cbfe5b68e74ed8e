"""What processes tell each other beside gradients: a failure of one, a clock, small values.

Every function is called by all processes at the same place, and costs nothing in a process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sensorium.errors import SensoriumError

T = TypeVar("T")


def raise_together(error: SensoriumError | None, world: int) -> None:
    """Raise where any process has an error, with its sentence; so none is left waiting for one that has gone.

    Raises:
        SensoriumError: that of the first process that has one.
    """
    if world > 1:
        flag = torch.tensor([0.0 if error is None else 1.0])
        dist.all_reduce(flag)
        if not flag.item():
            return
        told = [one for one in gathered(error and (str(error), type(error).__name__), world) if one]
        sentence, name = told[0]
        error = {"Failed": Failed, "Stopped": Stopped}.get(name, SensoriumError)(sentence)
    if error is not None:
        raise error


def next_together(
    batches: Iterator[T],
    error: SensoriumError | None,
    world: int,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> T | None:
    """This process's next batch, None behind the last one; raised by all are ``error`` and what a batch fails with.

    Args:
        batches, error, world: of this process; how many processes there are.
        waiting: a context in which a request to stop interrupts (`processes.StopRequest.waiting`).

    Raises:
        Failed: a batch cannot be made; nothing has been computed from it.
        Stopped: a process was asked to stop while it waited.
        SensoriumError: ``error`` of any process.
    """
    batch, failure = None, error
    if failure is None:
        try:
            with waiting():
                batch = next(batches, None)
        except KeyboardInterrupt:
            failure = Stopped("The run was interrupted.")
        except SensoriumError as broken:
            failure = Failed(str(broken))
        except OSError as broken:
            what = f"{broken.filename} cannot" if broken.filename else "A file of the data cannot"
            failure = Failed(f"{what} be read ({broken.strerror or broken}); put it back.")
    raise_together(failure, world)
    return batch


class Failed(SensoriumError):
    """A batch could not be made."""


class Stopped(SensoriumError):
    """A process was interrupted while it waited for a batch."""


def agreed(value: float, world: int) -> float:
    """Process 0's number, which all follow."""
    if world == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(told, 0)
    return float(told)


def gathered(value: T, world: int) -> list[T]:
    """Everybody's value, by rank; for what is small and can be pickled."""
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def stacked(tensor: Tensor, world: int) -> Tensor:
    """Everybody's tensor of one shape, [world, ...]."""
    return torch.stack(gathered(tensor, world))
