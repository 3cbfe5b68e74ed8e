"""One line of a run's log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """What is known about a run behind a step.

    Attributes:
        step, steps: the step that was taken, from 0, and all of the stage.
        loss: mean since the line before.
        gradient_norm: before clipping.
        tokens_per_s: since the run began (or was resumed).
        minutes: spent, over all resumptions.
        rate: of the schedule, 0 to 1.
        parts: further numbers of the task, by name.
    """

    step: int
    steps: int
    loss: float
    gradient_norm: float
    tokens_per_s: float
    minutes: float
    rate: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """All by name, those of the task among them."""
        return {**{name: value for name, value in self.__dict__.items() if name != "parts"}, **self.parts}

    def finite(self) -> dict[str, float | None]:
        """As `numbers`, with None for what is not finite and so no JSON."""
        return {name: value if math.isfinite(value) else None for name, value in self.numbers().items()}
