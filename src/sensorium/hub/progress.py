"""What a person sees while a part is fetched: a bar on a terminal, one short line elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Report = Callable[[int, int | None], None]
"""Called with the bytes that are there so far and the total (None while unknown)."""


def megabytes(size: int | None) -> str:
    """A size for people: "98 MB", "3.4 kB"; empty when unknown."""
    if size is None:
        return ""
    if size >= 1_000_000:
        return f"{size / 1e6:.0f} MB" if size >= 10_000_000 else f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes"


def say(line: str) -> None:
    """One line on standard error (which a windowed program may not have)."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


@contextlib.contextmanager
def reporting(label: str, size: int | None, *, show: bool) -> Iterator[Report]:
    """Yield the function that a download reports to. ``rich`` is imported only on a terminal."""
    if not show or sys.stderr is None:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        say(f"Fetching {label}" + (f" ({megabytes(size)})" if size else ""))
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"Fetching {label}", total=size)
        yield lambda done, total: bar.update(task, completed=done, total=total if total is not None else size)
