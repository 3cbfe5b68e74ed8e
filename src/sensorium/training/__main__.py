"""`python -m sensorium.training RECIPE [key=value]...`: `sensorium train` for launchers that start each process.

accelerate launch --multi_gpu --num_processes 2 -m sensorium.training recipes/mini-image.yaml train.steps=100
torchrun --standalone --nproc-per-node 2 -m sensorium.training recipes/mini-image.yaml

docs/cluster.md has more of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sensorium.cli import run


def main() -> int:
    """Hand the recipe and its changes to the command line, which says in one sentence what is wrong with them."""
    recipe, *changes = sys.argv[1:] or [""]
    if not recipe or recipe.startswith("-"):
        name = Path(sys.argv[0]).parent.name
        sys.stderr.write(f"sensorium: {name} takes a recipe and key=value changes, as sensorium train --set does.\n")
        return 2
    resume = [f"--resume={c.removeprefix('resume=')}" for c in changes if c.startswith("resume=")]
    sets = [f"--set={change}" for change in changes if not change.startswith("resume=")]
    return run(["train", recipe, *sets, *resume])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads now and then abort a process that Python takes down around them
