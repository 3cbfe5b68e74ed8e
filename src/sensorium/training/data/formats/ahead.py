"""Make things a few ahead, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(made: Iterator[T], depth: int) -> Iterator[T]:
    """The items of an iterator, up to ``depth`` of them made before they are asked for; its errors come in turn."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    ended = threading.Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in made:
                put((item, None))
                if ended.is_set():
                    return
        except Exception as error:
            put((None, error))
        put((_END, None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            try:  # not for ever: a signal that comes just before one waits is heard only when one wakes
                item, error = ready.get(timeout=0.5)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        ended.set()
        thread.join(timeout=1)  # what it makes is of no use any more, and may take long
