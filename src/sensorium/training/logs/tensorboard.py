"""Curves for TensorBoard: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path

from sensorium.training.logs.line import Progress


class TensorBoard:
    """Scalars by step.

    Args:
        directory: of the event files.
        first: the step that comes next; what was written for it and later ones, before a run was killed, is dropped.
    """

    def __init__(self, directory: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first or None)

    def write(self, line: Progress) -> None:
        """One scalar for each number of the line; NaN is shown as such."""
        for name, value in line.numbers().items():
            if name not in ("step", "steps"):
                self._writer.add_scalar(name, value, line.step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()
