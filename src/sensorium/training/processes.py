"""Processes of a run: ranks that work together, and what Ctrl-C means to them.

Ctrl-C must end a run of any number of processes quietly, with a checkpoint and without a hang. So worker processes
never see it: the parent does, and passes it on as SIGTERM, which each rank notes and acts on between two steps. Ranks
agree on the step through the message that carries their gradients.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from sensorium.errors import SensoriumError

INTERRUPTED = 130
PATIENCE_S = 120.0  # for ranks that finish their step and write a checkpoint


class StopRequest:
    """While it is open, the first Ctrl-C or SIGTERM only sets ``asked``; a second Ctrl-C interrupts at once.

    A rank whose parent has gone (killed, say) is asked to stop as well: nobody else could stop it.
    """

    def __init__(self) -> None:
        self.asked = self._waits = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether the run was asked to stop."""
        parent = multiprocessing.parent_process()
        return self.asked or (parent is not None and not parent.is_alive())

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, where nothing is computed that must be finished, to be asked is to be interrupted at once.

        Raises:
            KeyboardInterrupt: the run was asked to stop, now or before.
        """
        self._waits = True
        try:
            if self():
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        interrupts = self._waits or (self.asked and number == signal.SIGINT)
        self.asked = True
        if interrupts:
            raise KeyboardInterrupt


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: an ignored signal stays ignored in a child."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that a terminated parent takes its processes with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_ranks(work: Callable[..., None], ranks: int, arguments: Sequence[Any]) -> None:
    """Run ``work(rank, address, *arguments)`` in ``ranks`` spawned processes and wait for all of them.

    Raises:
        SensoriumError: a rank raised it, or ended in another way; the others are ended too.
        KeyboardInterrupt: the run was interrupted.
    """
    context = multiprocessing.get_context("spawn")
    address = f"tcp://127.0.0.1:{_free_port()}"
    sentences = context.SimpleQueue()
    processes: list[BaseProcess] = [
        context.Process(target=_rank, args=(work, rank, address, sentences, tuple(arguments)), name=f"rank {rank}")
        for rank in range(ranks)
    ]
    try:
        with _termination_interrupts():
            with deaf_children():
                for process in processes:
                    process.start()
            codes, first = _wait(processes)
    except KeyboardInterrupt:
        _end(processes, PATIENCE_S)
        raise
    finally:
        _end(processes, 0.0)
    killed = first is not None and codes[first] < 0  # the others' sentences only say that somebody has gone
    if not killed and not sentences.empty():
        raise SensoriumError(sentences.get())
    if INTERRUPTED in codes:
        raise KeyboardInterrupt
    if first is not None:
        raise SensoriumError(
            f"Training process {first} ended with code {codes[first]} (memory may have run out); "
            "use fewer train.processes or train.rows and resume."
        )


def _wait(processes: Sequence[BaseProcess]) -> tuple[list[int], int | None]:
    """Exit codes, once all have ended, and the first process that failed; then the others are asked to end."""
    running, first = list(processes), None
    while running:
        wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]
        failed = [i for i, process in enumerate(processes) if process not in running and process.exitcode]
        first = min(failed, key=lambda i: processes[i].exitcode or 0, default=None)  # one that was killed, if any
        if first is not None:
            _end(running, 20.0)
            running = []
    return [process.exitcode or 0 for process in processes], first


def _end(processes: Sequence[BaseProcess], patience: float) -> None:
    """Ask processes to end, and make them."""
    processes = [process for process in processes if process.pid is not None]
    for process in processes:
        if process.is_alive():
            process.terminate()
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _rank(work: Callable[..., None], rank: int, address: str, sentences: Any, arguments: Sequence[Any]) -> None:
    try:
        work(rank, address, *arguments)
    except SensoriumError as error:
        sentences.put(str(error))
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        sentences.put(
            f"Something unforeseen went wrong in training process {rank} ({type(error).__name__}: {reason}); "
            "SENSORIUM_DEBUG=1 shows where."
        )
        code = 1
    else:
        code = 0
    sys.stderr.flush()
    os._exit(code)  # communication threads of torch must not keep a failed rank alive


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
