"""What a run shows while it works: on a terminal a live line and the loss as a curve, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from sensorium.training.logs.line import Progress as Line
from sensorium.training.plot import clock, curve

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The course of a number in ``width`` characters, each the mean of its share; "·" where it is not finite."""
    if not values:
        return ""
    size = max(1.0, len(values) / width)
    count = min(width, len(values))
    parts = [values[int(i * size) : max(int(i * size) + 1, int((i + 1) * size))] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    finite = [value for value in means if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((v - low) * scale)] if math.isfinite(v) else "·" for v in means)


def remaining(line: Line, minutes: float | None) -> float:
    """Minutes until the stage ends, by its steps or its time limit."""
    done = (line.step + 1) / line.steps
    by_steps = line.minutes / done - line.minutes if done > 0 else math.inf
    return max(0.0, min(by_steps, minutes - line.minutes) if minutes else by_steps)


class Display:
    """Shows a stage's progress; use it as a context and call it with each line of the log.

    Args:
        name: of the stage.
        steps: in all.
        minutes: the stage's time limit.
    """

    def __init__(self, name: str, steps: int, minutes: float | None, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.minutes, self.losses = minutes, list[float]()
        columns = (TextColumn(name), BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
        self.live = self.console.is_terminal
        self.bar = Progress(*columns, console=self.console, disable=not self.live)
        self.task = self.bar.add_task(name, total=steps, shown="")
        self.screen = Live(self.bar, console=self.console, refresh_per_second=4, redirect_stdout=False)

    def __enter__(self) -> Display:
        if self.live:
            self.screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.screen.stop()

    def __call__(self, line: Line) -> None:
        """Show a line of the log."""
        self.losses.append(line.loss)
        left = clock(remaining(line, self.minutes))
        if self.live:
            course = f"loss {line.loss:.3f} {sparkline(self.losses)}"
            shown = f"{course} {line.tokens_per_s:.0f} tokens/s, {left} left"
            self.bar.update(self.task, completed=line.step + 1, shown=shown)
            lines = curve(self.losses, min(72, max(16, self.console.width - 12))) if len(self.losses) > 2 else []
            self.screen.update(Group(*(Text(text, no_wrap=True) for text in lines), self.bar))
            return
        self.console.print(
            f"step {line.step:5d}/{line.steps}  loss {line.loss:.4f}  gradient {line.gradient_norm:.2f}  "
            f"{line.tokens_per_s:.0f} tokens/s  {line.minutes:.1f} min, {left} left",
            soft_wrap=True,
        )
