"""Where the lines of a run's log go: always `log.jsonl`, and what the recipe lists under ``train.log`` besides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sensorium.errors import SensoriumError, install
from sensorium.training.logs.jsonl import LOG, JsonLines
from sensorium.training.logs.line import Progress

NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""What can be listed, and the package that it needs."""


class Logger(Protocol):
    """Takes lines, one behind the other."""

    def write(self, line: Progress) -> None:
        """Keep a line. An exception ends this log, and not the run."""

    def close(self) -> None:
        """Nothing comes any more."""


Opening = Callable[[int], Mapping[str, Logger]]
"""Opens further logs, by name, at the step that comes next."""


class Logs:
    """All logs of a stage: `log.jsonl`, which must work, and others, which may fail without the run.

    Args:
        directory: of the stage.
        first: the step that comes next.
        report: is told of every line, too.
        others: opens further logs.
    """

    def __init__(
        self, directory: Path, first: int, report: Callable[[Progress], None] | None, others: Opening | None = None
    ) -> None:
        self._lines, self._report = JsonLines(directory / LOG, first), report
        self._others: dict[str, Logger] = {}
        if others:
            self._tried("The logs under train.log", lambda: self._others.update(others(first)))

    def write(self, line: Progress) -> None:
        """Raises OSError when `log.jsonl` cannot be written."""
        self._lines.write(line)
        if self._report:
            self._report(line)
        for name, logger in list(self._others.items()):
            if not self._tried(name, lambda logger=logger: logger.write(line)):  # type: ignore[misc]
                del self._others[name]

    def close(self) -> None:
        """Close all of them."""
        self._lines.close()
        for name, logger in self._others.items():
            self._tried(name, logger.close)

    def _tried(self, name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # of somebody else's package, which talks to servers
            reason = (str(error).splitlines() or [""])[0][:200]
            sys.stderr.write(f"{name} failed ({type(error).__name__}: {reason}); the run goes on with {LOG}.\n")
            return False
        return True


def check(names: Sequence[str]) -> None:
    """Refuse a log whose package is not installed; called before anything is loaded."""
    for name in names:
        if find_spec(NEEDS[name]) is None:
            raise SensoriumError(f"train.log lists {name}, which is not installed; {install('logs')}, or leave it out.")


def open_loggers(
    names: Sequence[str], directory: Path, run: str, facts: Mapping[str, Any], first: int
) -> dict[str, Logger]:
    """The logs of a stage, by name.

    Args:
        names: what the recipe lists; keys of `NEEDS`.
        directory: of the stage; everything is kept below it.
        run: its name.
        facts: of the run, shown beside its curves.
        first: the step that comes next; above 0 a run goes on.
    """
    loggers: dict[str, Logger] = {}
    if "tensorboard" in names:
        from sensorium.training.logs.tensorboard import TensorBoard

        loggers["tensorboard"] = TensorBoard(directory / "tensorboard", first)
    if "wandb" in names:
        from sensorium.training.logs.wandb import WandB

        loggers["wandb"] = WandB(directory, run, facts)
    return loggers
