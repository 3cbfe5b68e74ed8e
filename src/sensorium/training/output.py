"""The output directory of a run: whose it is, and what to say when it cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sensorium import config, hub
from sensorium.arguments import expanded
from sensorium.errors import SensoriumError, UsageError
from sensorium.hub.progress import say
from sensorium.training.failures import in_a_sentence
from sensorium.training.install import check_target, install
from sensorium.training.overrides import flat, names
from sensorium.training.recipe import Recipe
from sensorium.training.values import Run

RECIPE = "recipe.yaml"
MOVED = ("output",)  # what a resumed run may say otherwise: a directory may be moved


@contextlib.contextmanager
def running(
    plan: Run, recipe: Path | None, overrides: Sequence[str], resume: Path | None, checkpoints: Sequence[str]
) -> Iterator[Path]:
    """A run that one process leads, from its output directory, which this yields, to the installed composition.

    Whatever else can be wrong with a recipe is to be checked before: here the directory is made. A run of several
    stages and launched processes puts the same functions together itself (`training.run`).

    Args:
        plan: the recipe, changed by ``overrides``.
        recipe: its file, if it has one.
        resume, checkpoints: as `output_of` has them.

    Raises:
        UsageError: as `output_of`, `check_same` and `install.check_target` do.
        SensoriumError: the output or the place to install to cannot be written, or the machine is at fault.
    """
    output = output_of(plan.output, resume, checkpoints)
    if resume:
        check_same(output, plan, recipe, overrides)
    check_target(plan.install, output)
    with held(output), going_on(recipe, overrides, output, checkpoints), in_a_sentence(output):
        if not resume:
            keep_recipe(output, plan.dump())
        show_recipe(output, plan)
        try:
            yield output
        except KeyboardInterrupt:
            keep_recipe(output, plan.dump())
            raise
        keep_recipe(output, plan.dump())  # of a resumed run only now: it may have been refused, and is what it was
        if plan.install:
            say(f"Installed: {install(output / 'composition', plan.install)}")


def output_of(directory: str, resume: Path | None, checkpoints: Sequence[str]) -> Path:
    """Where a run writes, checked before anything is fetched.

    Args:
        directory: what the recipe says.
        resume: the output of the run that goes on, if one does.
        checkpoints: files that a run leaves below its output, from which it could go on.

    Raises:
        UsageError: there is no run to resume, or one that a new run would overwrite; or it is no directory.
        SensoriumError: the run to resume was ended before its first checkpoint.
    """
    output = expanded(resume or directory)
    if not _holds(output, checkpoints):
        if resume and not (output / RECIPE).is_file():
            raise UsageError(f"--resume {resume} is no output directory of a training run; it holds no {RECIPE}.")
        if resume:
            raise SensoriumError(f"{output} holds no checkpoint to resume from; leave --resume out to start anew.")
        there = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise UsageError(f"The output {output} is no directory ({there}); choose another with --set output=DIR.")
    elif not resume:
        raise UsageError(
            f"{output} holds the checkpoint of a run already; continue it with --resume {output}, or choose another "
            "place with --set output=DIR."
        )
    return output


def check_same(output: Path, plan: BaseModel, recipe: Path | None, overrides: Sequence[str]) -> None:
    """Refuse to resume a run with a recipe that says something else than it was begun with, unless ``--set`` asks for
    it: a forgotten ``--set`` must not end a run early.

    Args:
        output: of the run to resume.
        plan: the recipe now, changed by ``overrides``.
        recipe: its file, if it has one.

    Raises:
        UsageError: a value differs that no override names.
    """
    saved = output / RECIPE
    try:
        before = config.validate(config.read_yaml(saved)[0], type(plan), saved)
    except UsageError:  # damaged, or of another version: what must not change is in the checkpoint as well
        return
    was, now = (_values(one) for one in (before, plan))
    said = [text.partition("=")[0].strip() for text in overrides]
    missing = object()
    keys = [key for key in dict.fromkeys([*now, *was]) if was.get(key, missing) != now.get(key, missing)]
    silent = [key for key in keys if key.split(".")[0] not in MOVED and not any(names(one, key) for one in said)]
    if silent:
        then, after = (_yaml(side[silent[0]]) if silent[0] in side else "nothing" for side in (was, now))
        more = f" ({len(silent) - 1} more differ)" if len(silent) > 1 else ""
        raise UsageError(
            f"{output} was begun with {silent[0]}={then}, and {recipe or 'the recipe'} says {after}{more}; add "
            f"{shlex.join(['--set', f'{silent[0]}={then}'])} to go on as it was, or --set with the new value."
        )


@contextlib.contextmanager
def held(output: Path, writes: bool = True) -> Iterator[None]:
    """Make the directory and, for a process that writes, keep other runs out of it for as long as this one lasts.

    Raises:
        SensoriumError: it cannot be written, or another run is writing there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except FileExistsError:
        raise SensoriumError(f"The output {output} is no directory; choose another with --set output=DIR.") from None
    except OSError as error:
        raise SensoriumError(f"The output {output} cannot be written ({error.strerror}); choose another.") from None
    with contextlib.ExitStack() as stack:
        if writes:
            try:
                stack.enter_context(hub.file_lock(output / "run", timeout=0))
            except SensoriumError:
                raise SensoriumError(
                    f"Another run is writing into {output}; wait for its end, or choose another place with --set "
                    "output=DIR."
                ) from None
        yield


def keep_recipe(output: Path, recipe: str) -> None:
    """Save the resolved recipe with the run. Raises SensoriumError when it cannot be written."""
    with hub.atomic_write(output / RECIPE, "w") as file:
        file.write(recipe)


def show_recipe(output: Path, plan: BaseModel) -> None:
    """Print the resolved recipe: every value that decides something, also those that the file leaves to their defaults.

    What is None or empty is left out, and so are learning rates of parts that never learn and, where there are stages,
    what they have taken over from the whole recipe.
    """
    data = plan.model_dump(mode="json", exclude_none=True)
    if isinstance(plan, Recipe):
        learns = {part for stage in plan.plan() for part in plan.trains(stage)}
        for part in {"lora", "backbone", "tokens"} - learns:
            for section in (data, *data["stages"]):
                del section["train"]["learning_rate"][part]
        if plan.stages:
            del data["data"], data["train"]
    text = yaml.safe_dump(_filled(data), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    say(f"The recipe, resolved ({output / RECIPE}):\n{textwrap.indent(text.rstrip(), '  ')}")


def _filled(data: Any) -> Any:
    """Without empty mappings and lists."""
    if isinstance(data, list):
        return [_filled(item) for item in data]
    if not isinstance(data, dict):
        return data
    return {key: _filled(value) for key, value in data.items() if value != {} and value != []}


@contextlib.contextmanager
def going_on(recipe: Path | None, overrides: Sequence[str], output: Path, checkpoints: Sequence[str]) -> Iterator[None]:
    """Inside, an interrupt says how to go on from a checkpoint, if there is one.

    Args:
        recipe: the file; None says nothing.
        overrides: the changes of it, which belong to the command.
        output, checkpoints: as `output_of` has them.
    """
    try:
        yield
    except KeyboardInterrupt:
        if recipe is not None and _holds(output, checkpoints):
            say(f"Interrupted; continue with: {how_to_go_on(recipe, overrides, output)}")
        raise


def how_to_go_on(recipe: Path, overrides: Iterable[str], output: Path) -> str:
    """The command that continues a run as it was: the changes of the recipe belong to it."""
    changes = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["sensorium", "train", str(recipe), *changes, "--resume", str(output)])


def ended_before(output: Path, steps: int) -> str:
    """What to say of a resumed run that had taken its last step already."""
    return (
        f"The run in {output} had ended already, behind step {steps}, so nothing was trained; raise its steps or "
        "minutes with --set to train on."
    )


def _holds(output: Path, checkpoints: Sequence[str]) -> bool:
    return any((output / name).is_file() for name in checkpoints)


def _values(plan: BaseModel) -> Mapping[str, Any]:
    """All values by dotted key, stages by their name."""
    data = plan.model_dump(mode="json")
    stages = data.pop("stages", None) or ()
    return dict(flat(data)) | {f"stages.{stage['name']}.{key}": value for stage in stages for key, value in flat(stage)}


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
