"""Processes of a run in a fraction of a second: forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# what a run imports on its way; one that is missing is passed over
HEAVY = ["torch", "torch.distributed.fsdp", "torch.onnx", "onnx", "onnxruntime", "matplotlib.figure"]
CONTEXT.set_forkserver_preload([*HEAVY, "sensorium.training.stages", "sensorium.cli", "tiny", "tiny_training"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(work: Callable[..., Any], environment: Mapping[str, str], error: str, pipe: Any, arguments: Any) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    if error:
        descriptor = os.open(error, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
    try:
        pipe.send((True, work(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    sys.stderr.flush()
    os._exit(0)  # communication threads of torch must not keep it


class Child:
    """``work(*arguments)`` in a process of its own, with changes of the environment and its output in a file."""

    def __init__(
        self, work: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None, error: Any = ""
    ) -> None:
        self.pipe, theirs = CONTEXT.Pipe(False)
        given = (work, {"OMP_NUM_THREADS": "1", **(environment or {})}, str(error), theirs, arguments)
        self.process = CONTEXT.Process(target=_child, args=given)
        self.process.start()
        theirs.close()

    def result(self, timeout: float = 240.0) -> Any:
        """What it returned; its traceback as an AssertionError. None when it was killed."""
        try:
            assert self.pipe.poll(timeout), "the process hangs"
            good, value = self.pipe.recv()
        except EOFError:
            good, value = True, None
        finally:
            self.kill()
        assert good, value
        return value

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        self.process.kill()
        self.process.join()


def launcher(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def together(work: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """``work(rank, *arguments)`` in processes that gloo has brought together; what each returned."""
    port = free_port()
    children = [
        Child(_joined, work, rank, *arguments, environment=launcher(rank, ranks, port)) for rank in range(ranks)
    ]
    results, errors = [], []
    try:
        for child in children:
            try:
                results.append(child.result())
            except AssertionError as error:
                errors.append(str(error))
    finally:
        for child in children:
            child.kill()
    assert not errors, "\n".join(errors)
    return results


def _joined(work: Callable[..., Any], rank: int, *arguments: Any) -> Any:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    result = work(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()
    return result
