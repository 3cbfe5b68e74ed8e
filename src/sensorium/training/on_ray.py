"""`python -m sensorium.training.on_ray RECIPE [workers=2] [gpu=1] [key=value]...`: a training on a Ray cluster.

Ray Train starts the workers, on whatever machines the cluster has, and brings them together; each then runs the same
training as under any other launcher.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sensorium import console, hub
from sensorium.errors import SensoriumError, UsageError, install


def train_on_ray(
    recipe: Path, overrides: Sequence[str] = (), resume: Path | None = None, *, workers: int = 2, gpu: bool = False
) -> Path:
    """Run a recipe in the workers of a Ray cluster: the running one, or one started here.

    Args:
        recipe, overrides, resume: as of `run.train`; relative paths mean this directory, on every machine.
        workers: processes.
        gpu: give each a GPU.

    Returns:
        The directory of the trained composition.

    Raises:
        SensoriumError: Ray is missing, or the training failed.
    """
    if not all(map(find_spec, ("ray", "pandas"))):  # Ray Train imports pandas
        raise SensoriumError(
            f"A training on Ray needs Ray with its extra train, which is not installed; {install('ray')}."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import tempfile

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from sensorium.training.engines import _connect
    from sensorium.training.recipe import load_recipe

    output = Path(resume or load_recipe(recipe, overrides).output).absolute()  # and what is wrong with it is said here
    given = {
        "recipe": str(recipe.absolute()), "overrides": [*overrides], "resume": str(resume.absolute()) if resume else "",
        "directory": str(Path.cwd()), "home": str(hub.home()), "offline": os.environ.get("SENSORIUM_OFFLINE", ""),
    }  # fmt: skip
    ray, ours = _connect(workers)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            trainer = TorchTrainer(
                _worker,
                train_loop_config=given,
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
                run_config=RunConfig(name="sensorium", storage_path=scratch),
            )
            trainer.fit()
    except Exception as error:
        raise SensoriumError(_sentence(error)) from None
    finally:
        if ours:
            with contextlib.suppress(Exception):
                ray.shutdown()
    return output / "composition"


def _worker(given: dict[str, Any]) -> None:
    """What each worker does; Ray has told it its rank and brought the workers together."""
    os.chdir(given["directory"])
    os.environ.update({"SENSORIUM_HOME": given["home"], "SENSORIUM_OFFLINE": given["offline"]})
    from sensorium.training.run import train

    train(Path(given["recipe"]), given["overrides"], Path(given["resume"]) if given["resume"] else None)


def _sentence(error: Exception) -> str:
    """The worker's own sentence where it has one; Ray wraps it a few times."""
    causes: list[BaseException] = [error]
    for cause in causes:
        if isinstance(cause, SensoriumError):
            return str(cause)
        failures = getattr(cause, "worker_failures", {})
        more = (getattr(cause, "cause", None), cause.__cause__, *failures.values())
        causes += [one for one in more if isinstance(one, BaseException) and one not in causes]
    reason = (str(causes[-1]).splitlines() or [""])[0][:200]
    return f"The training on Ray failed ({type(causes[-1]).__name__}: {reason}); the workers' own logs have more."


def main(arguments: Sequence[str]) -> int:
    """The command line of this module."""
    recipe, *changes = [*arguments] or [""]
    if not recipe or recipe.startswith("-"):
        raise UsageError("on_ray takes a recipe and key=value changes, workers=2 and gpu=1 among them.")
    own = {key: value for key, _, value in (change.partition("=") for change in changes)}
    workers = own.get("workers", "2")
    if not workers.isdigit() or not int(workers):
        raise UsageError(f"workers={workers[:20]!r} is no number of processes; give 2, for example.")
    sets = [change for change in changes if change.partition("=")[0] not in ("workers", "gpu", "resume")]
    resume = Path(own["resume"]) if "resume" in own else None
    trained = train_on_ray(Path(recipe), sets, resume, workers=int(workers), gpu=own.get("gpu", "0") == "1")
    console.write(f"{trained}\n")
    return 0


if __name__ == "__main__":
    sys.exit(console.guard(lambda: main(sys.argv[1:])))
