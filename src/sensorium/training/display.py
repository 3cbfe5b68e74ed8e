"""What a run shows while it works: a live line with the loss's course on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sensorium.training.loop import Progress as Line

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
        self.bar = Progress(*columns, console=self.console, disable=not self.live, transient=False)
        self.task = self.bar.add_task(name, total=steps, shown="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, line: Line) -> None:
        """Show a line of the log."""
        self.losses.append(line.loss)
        if self.live:
            left = remaining(line, self.minutes)
            course = f"loss {line.loss:.3f} {sparkline(self.losses)}"
            shown = f"{course} {line.tokens_per_s:.0f} tokens/s, {left:.0f} min left"
            self.bar.update(self.task, completed=line.step + 1, shown=shown)
            return
        self.console.print(
            f"step {line.step:5d}/{line.steps}  loss {line.loss:.4f}  gradient {line.gradient_norm:.2f}  "
            f"{line.tokens_per_s:.0f} tokens/s  {line.minutes:.1f} min",
            soft_wrap=True,
        )
