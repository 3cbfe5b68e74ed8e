"""`sensorium train`: from a recipe to a composition directory, top to bottom."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.composition import file_sha256
from sensorium.errors import SensoriumError
from sensorium.hub.progress import say
from sensorium.training import logs
from sensorium.training.failures import in_a_sentence
from sensorium.training.frozen import Frozen, obtain
from sensorium.training.install import install
from sensorium.training.launch import check_launcher, first_in_turn, launched, launcher_says, leave, meet
from sensorium.training.output import check_same, going_on, held, keep_recipe, output_of, show_recipe
from sensorium.training.overrides import place
from sensorium.training.preflight import check_recipe, check_rows
from sensorium.training.recipe import Recipe, StageRecipe, facts, load_recipe
from sensorium.training.scene_store import StorePlan, build

DONE = "done.json"  # in a stage's directory, once it has taken its last step


def train(recipe: Path, overrides: Sequence[str] = (), resume: Path | None = None) -> Path:
    """Run a recipe, stage by stage.

    Args:
        recipe: the YAML file.
        overrides: ``key=value`` changes.
        resume: the output directory of an interrupted run of the same recipe.

    Returns:
        The directory of the trained composition.

    Raises:
        UsageError: the recipe or the call is wrong.
        SensoriumError: a part, a picture, a checkpoint or the machine is at fault.
        KeyboardInterrupt: the run was interrupted; a checkpoint was written if a step had been taken.
    """
    rank, world = launched()
    changes = [*overrides, *launcher_says(world)]
    plan = load_recipe(recipe, changes)  # before torch's seconds
    check_launcher(plan.train.processes)
    for stage in plan.plan():
        logs.check(stage.train.log)

    from sensorium.training import checkpoint
    from sensorium.training.processes import run_ranks

    checkpoints = [f"{stage.name}/{checkpoint.FILE}" if plan.stages else checkpoint.FILE for stage in plan.plan()]
    output = output_of(plan.output, resume, checkpoints)
    plan = plan.model_copy(update={"output": str(output)})
    stages = plan.plan()
    given = partial(place, recipe, changes)
    if resume:
        check_same(output, plan, recipe, changes)
    check_recipe(plan, output, given)
    hint = going_on(None if rank else recipe, overrides, output, checkpoints)
    with held(output, writes=not rank), hint:  # before anything is fetched
        met = meet(rank, world)
        with first_in_turn(rank, world):
            frozen = obtain(plan)
            check_rows(plan, frozen, given)
            stores = compute_features(frozen)
        kept = [
            {**facts(plan, stage), **drawn_from(store), **frozen.fingerprints}
            for stage, store in zip(stages, frozen.stores)
        ]
        first = first_stage(plan, kept) if resume else 0
        if not rank:
            keep_recipe(output, plan.dump())
            show_recipe(output, plan)
        arguments = (plan, frozen, kept, stores, first, resume is not None)
        try:
            if world or plan.train.processes == 1:
                in_process(rank, "env://", *arguments)
            else:
                run_ranks(in_process, plan.train.processes, arguments)
        finally:
            if met:
                leave()
        if plan.evaluate and not rank:
            evaluate(output / "composition")
        if plan.install and not rank:
            say(f"Installed: {install(output / 'composition', plan.install)}")
    return output / "composition"


def in_process(rank: int, address: str, plan: Recipe, *arguments: Any) -> None:
    """`stages.worker`, where what the machine does to a run is a sentence as well."""
    from sensorium.training.stages import worker

    with in_a_sentence(Path(plan.output)):
        worker(rank, address, plan, *arguments)


def evaluate(trained: Path) -> None:
    """Ask a trained composition about the development photographs, show the scorecard, keep it in the manifest."""
    from sensorium import hub
    from sensorium.composition import MANIFEST
    from sensorium.evaluation.run import evaluate as run_suites

    try:
        card = run_suites(["image"], model=trained, split="dev", with_scenes=False, results=None, table=sys.stderr)
    except SensoriumError as error:  # a photograph cannot be fetched, say: the weights are no worse for it
        say(f"The trained composition was not evaluated: {error}")
        return
    rows = card["suites"]["image"]["rows"]
    kept = ("name", "chance", "blind", "shuffled", "cascade", "model", "ci95", "n")
    manifest = json.loads((trained / MANIFEST).read_text(encoding="utf-8"))
    manifest["metrics"] = {"photographs, development half": [{key: row[key] for key in kept} for row in rows]}
    with hub.atomic_write(trained / MANIFEST, "w") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")


def drawn_from(store: StorePlan | None) -> dict[str, str]:
    """The digest of the catalogue that a stage's scenes are drawn from."""
    return {"data.catalogue": file_sha256(store.catalogue)} if store else {}


def first_stage(plan: Recipe, kept: Sequence[dict[str, Any]]) -> int:
    """The stage that a resumed run goes on with; every stage up to it is checked against its checkpoint."""
    from sensorium.training import checkpoint

    stages = plan.plan()
    for number, stage in enumerate(stages):
        directory = plan.directory(stage)
        if number and not (directory / checkpoint.FILE).exists():
            return number  # the one before it had ended
        checkpoint.check(directory, kept[number])
        if not finished(plan, stage):
            return number
    return len(stages) - 1


def finished(plan: Recipe, stage: StageRecipe) -> dict[str, Any]:
    """{"steps", "minutes"} of a stage that has taken its last step; empty for another."""
    try:
        done = json.loads((plan.directory(stage) / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) and {"steps", "minutes"} <= set(done) else {}


def compute_features(frozen: Frozen) -> tuple[Path | None, ...]:
    """Draw and encode what the stores lack, with a progress bar on a terminal; for each stage its directory, if any."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("Composing and encoding scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    directories: list[Path | None] = []
    for plan in frozen.stores:
        if plan is None:
            directories.append(None)
            continue
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("features", total=plan.scenes)

            def report(done: int, total: int, bar: Progress = bar, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            directories.append(build(plan, report=report))
    return tuple(directories)
