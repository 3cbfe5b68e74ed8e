"""Where a process of a run stands among the others, however they were started: by the run itself, or by a launcher."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sensorium.errors import UsageError

MPI = {"RANK": "_RANK", "WORLD_SIZE": "_SIZE", "LOCAL_RANK": "_LOCAL_RANK", "LOCAL_WORLD_SIZE": "_LOCAL_SIZE"}


def _number(name: str, default: int) -> int:
    """A number that a launcher sets, under torch's name for it or Open MPI's."""
    text = os.environ.get(name) or os.environ.get("OMPI_COMM_WORLD" + MPI[name]) or str(default)
    if not text.isdigit():
        raise UsageError(f"{name}={text[:20]!r} is no whole number, as a launcher sets it; unset it.")
    return int(text)


def launched() -> tuple[int, int]:
    """(rank, processes) when a launcher started this process among others (torchrun, accelerate, mpirun, Ray); else
    (0, 0)."""
    world = _number("WORLD_SIZE", 1)
    return (_number("RANK", 0), world) if world > 1 else (0, 0)


def launcher_says(world: int) -> list[str]:
    """What a launcher decides for a recipe: how many processes there are, and whether they divide the model."""
    if not world:
        return []
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return [f"train.processes={world}", *(["train.sharding=full"] if fsdp else [])]


def check_launcher(processes: int) -> None:
    """Refuse a run of one process for which `accelerate launch` was asked for more, and started no other.

    With ``--cpu`` accelerate (1.15) leaves starting processes to mpirun, and runs one where that is not asked for. A
    recipe with ``train.processes`` starts them itself, then as always.
    """
    asked = "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if asked and processes == 1 and not launched()[1]:
        raise UsageError(
            "accelerate launch --cpu starts one process, whatever --num_processes says; add train.processes=2 to the "
            "changes of the recipe, or give --multi_gpu in place of --cpu."
        )


def on_this_machine(rank: int, world: int) -> tuple[int, int]:
    """(rank, processes) among those of this machine; a launcher of several machines says so."""
    if not launched()[1]:
        return rank, world
    return _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world)


def backend() -> str:
    """What carries messages between processes: gloo for those in memory, NCCL for those on GPUs."""
    import torch
    import torch.distributed as dist

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def meet(rank: int, world: int, address: str = "env://") -> bool:
    """Bring the processes together; whether it was done here, and not by a launcher before."""
    import torch.distributed as dist

    if world < 2 or dist.is_initialized():
        return False
    dist.init_process_group(backend(), init_method=address, rank=rank, world_size=world)
    return True


def leave() -> None:
    """End what `meet` began; nobody is waited for, as some may have failed."""
    import torch.distributed as dist

    with contextlib.suppress(Exception):
        dist.destroy_process_group()


@contextlib.contextmanager
def first_in_turn(rank: int, world: int) -> Iterator[None]:
    """Process 0 goes first, so that it fetches and computes what the others then find; also when it fails.

    Then the first process of every other machine, for machines without a common cache; then all others.
    """
    if not world:
        yield
        return
    import torch.distributed as dist

    turn = 0 if not rank else 1 if not on_this_machine(rank, world)[0] else 2
    for _ in range(turn):
        dist.barrier()
    try:
        yield
    finally:
        for _ in range(turn, 2):
            dist.barrier()
