"""Curves for Weights & Biases, which go nowhere unless somebody has logged in."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.training.logs.line import Progress

ID = "wandb-id"


class WandB:
    """A run of wandb. Without `WANDB_MODE` and without an account it is kept on disk, for `wandb sync`.

    Args:
        directory: of the stage: for wandb's files, and for the id under which a resumed run goes on.
        run: its name.
        facts: its configuration.
    """

    def __init__(self, directory: Path, run: str, facts: Mapping[str, Any]) -> None:
        import wandb

        known = directory / ID
        if not known.is_file():
            known.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sensorium"), name=run, id=known.read_text(encoding="utf-8"),
            resume="allow", dir=str(directory), mode=mode, config=dict(facts),
        )  # fmt: skip
        # wandb's own counter never goes back, and a resumed run repeats the steps behind its checkpoint
        self._run.define_metric("*", step_metric="step")

    def write(self, line: Progress) -> None:
        """One number for each of the line."""
        self._run.log(line.numbers())

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _has_account(wandb: Any) -> bool:
    """Whether wandb would know whom to send to, without asking on the terminal."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.api.api_key)
    except Exception:
        return False
