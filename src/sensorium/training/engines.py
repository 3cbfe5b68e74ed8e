"""Where many independent tasks run: in this process, in processes of this machine, or on a Ray cluster.

A task writes its own result and may run twice. What comes of it does not depend on where it ran.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from sensorium import hub
from sensorium.backbones.threads import physical_cores
from sensorium.errors import SensoriumError, UsageError, install
from sensorium.training.processes import deaf_children

T = TypeVar("T")
R = TypeVar("R")
ENGINES = ("local", "ray")
RETRIES = 2  # of a task whose Ray worker dies


def spread(
    work: Callable[[T], R], tasks: Iterable[T], *, engine: str = "local", workers: int | None = None
) -> Iterator[R]:
    """Do ``work`` for each task and yield what it returns, in the order in which they end.

    Args:
        work: a function of a module, so that other processes find it.
        tasks: what can be pickled; one more than there are workers is taken ahead.
        engine: "local" or "ray".
        workers: processes; by default one a core, or what the cluster has (2 in one started here).

    Raises:
        SensoriumError: a task raised it, a worker ended before its time, or Ray is missing or gone.
        UsageError: the engine is unknown.
    """
    check(engine)
    return _ray(work, iter(tasks), workers) if engine == "ray" else _local(work, iter(tasks), workers)


def check(engine: str) -> None:
    """Refuse an unknown engine, or one that is not installed."""
    from importlib.util import find_spec

    if engine not in ENGINES:
        raise UsageError(f"--engine is {engine!r}; use {' or '.join(ENGINES)}.")
    if engine == "ray" and find_spec("ray") is None:
        raise SensoriumError(f"--engine ray needs Ray, which is not installed; {install('ray')}.")


# Processes of this machine --------------------------------------------------------------------------------------------


def _local(work: Callable[[T], R], tasks: Iterator[T], workers: int | None) -> Iterator[R]:
    workers = workers or physical_cores()
    first = list(islice(tasks, 2 if workers > 1 else 0))  # a single task is not worth a process
    tasks = chain(first, tasks)
    if workers <= 1 or len(first) < 2:
        yield from map(work, tasks)
        return
    others = set(multiprocessing.active_children())
    # spawned, not forked: ONNX Runtime's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        running: set[Future[R]] = set()
        while True:
            for task in islice(tasks, workers + 1 - len(running)):
                with deaf_children():
                    running.add(pool.submit(work, task))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise SensoriumError(
            "A process that computes features ended before its time (memory may have run out); close other programs "
            "and run the command again, it goes on where it stopped."
        ) from None
    except BaseException:  # an interrupt, too: do not wait for shards that take a minute
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        with contextlib.suppress(OSError):
            pool.shutdown()


def _end_with_parent() -> None:
    """In a worker: end when the parent was killed, instead of waiting for its next task for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Ray ------------------------------------------------------------------------------------------------------------------


def _ray(work: Callable[[T], R], tasks: Iterator[T], workers: int | None) -> Iterator[R]:
    ray, ours = _connect(workers)
    # One core a task, as each encodes with one thread. Retried when a worker dies, not when a task raises.
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
    running: list[Any] = []
    try:
        while True:
            cores = workers or int(ray.cluster_resources().get("CPU", 1))  # asked anew: clusters grow
            for task in islice(tasks, max(0, cores + 1 - len(running))):
                running.append(remote.remote(task))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1, timeout=1.0)  # a second, so that Ctrl-C is heard
            for reference in done:
                yield ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SensoriumError):
            raise type(error.cause)(str(error.cause)) from None
        reason = (str(error.cause).splitlines() or [""])[0][:200]
        raise SensoriumError(
            f"A task on the Ray cluster failed ({type(error.cause).__name__}: {reason}); every node must see the same "
            "files and run the same version of Sensorium."
        ) from None
    except ray.exceptions.RayError as error:
        raise SensoriumError(
            f"A Ray worker ended before its time, and so did {RETRIES} that took over ({type(error).__name__}; memory "
            "may have run out); what is done is kept, so run the command again."
        ) from None
    finally:
        with contextlib.suppress(Exception):
            for reference in running:
                ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _connect(workers: int | None) -> tuple[Any, bool]:
    """Ray, connected to the running cluster or to one started here; and whether to disconnect."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    environment = {"SENSORIUM_HOME": str(hub.home())}
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": environment}, "logging_level": logging.ERROR, "log_to_driver": False,
    }  # fmt: skip
    try:
        try:
            ray.init(address="auto", **options)
        except ConnectionError:  # none runs
            # Tasks carry names of files, not features, so the object store can be as small as Ray allows.
            ray.init(
                address="local",
                num_cpus=workers or 2,
                include_dashboard=False,
                object_store_memory=80 * 2**20,
                **options,
            )
    except Exception as error:  # a node that does not come up in time raises a bare Exception
        reason = (str(error).splitlines() or [""])[0][:200]
        raise SensoriumError(
            f"Ray cannot be reached or started ({type(error).__name__}: {reason}); see `ray status`, or use --engine "
            "local."
        ) from None
    return ray, True
