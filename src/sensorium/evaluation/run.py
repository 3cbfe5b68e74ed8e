"""`sensorium eval`: run suites, show the scorecard, keep the results."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np

from sensorium.errors import SensoriumError, UsageError
from sensorium.evaluation.scorecard import Scorecard

if TYPE_CHECKING:
    from sensorium.evaluation.items import EvalItem
    from sensorium.model import Model

SUITES = ("image", "speech")
USUAL = ("image",)  # speech needs synthetic voices, which only training needs otherwise
TWO_TOWER_SUITES = ("clip",)  # of a model without a language model; not among the default ones


def evaluate(
    suites: Sequence[str] = (),
    *,
    model: str | Path = "mini",
    projector_only: str | Path | None = None,
    split: Literal["dev", "test"] = "test",
    catalogue: Path | None = None,
    limit: int | None = None,
    with_scenes: bool = True,
    results: Path | None = Path("results"),
    table: TextIO | None = None,
) -> dict[str, Any]:
    """Run suites of questions and show every score beside its baselines.

    Args:
        suites: names of `SUITES`; none means `USUAL`.
        model: name or directory of the composition.
        projector_only: a composition without LoRA to show beside it.
        split: photographs and spoken questions of the development or of the test half. The test half is for results,
            not for choices.
        catalogue: a catalogue of training pictures (JSON lines); scenes are made of its test half. None takes the one
            that training uses, and builds it when it is not in the cache (a large download, said beforehand); where
            that cannot be done, a note says why, and the photographs alone are evaluated.
        limit: at most so many pictures of each kind, for a quick look.
        with_scenes: False evaluates the photographs alone and fetches nothing for scenes.
        results: directory for `<suite>.json` and `<suite>.md`; None keeps nothing.
        table: where the table is printed; None is standard error.

    Returns:
        {"model", "suites": {name: scorecard}}, plain values for JSON.

    Raises:
        UsageError: a suite is unknown.
        SensoriumError: the model or the photographs cannot be had.
    """
    names = list(dict.fromkeys(suites)) or list(USUAL)
    for name in names:
        if name not in (*SUITES, *TWO_TOWER_SUITES):
            raise UsageError(f"the suite {name!r} is unknown; known suites: {', '.join((*SUITES, *TWO_TOWER_SUITES))}.")
    if "clip" in names:
        return _evaluate_clip(names, model, split, catalogue, limit, with_scenes, results, table)
    import sensorium

    loaded: Model = sensorium.load(model)
    cards = {}
    for name in names:
        if name == "speech":
            cards[name] = _speech_suite(loaded, split, limit)
        else:
            cards[name] = image_suite(loaded, projector_only, split, catalogue, limit, with_scenes)
    for card in cards.values():
        _show(card, table or sys.stderr)
        if results is not None:
            card.save(results)
    return {"model": loaded.name, "suites": {name: card.to_dict() for name, card in cards.items()}}


def _speech_suite(model: Model, split: Literal["dev", "test"], limit: int | None) -> Scorecard:
    from sensorium.evaluation.suites.speech import evaluate_speech

    started = time.perf_counter()
    with _progress("speech") as tick:
        card = evaluate_speech(model, split=split, limit=limit, progress=tick)
    return replace(card, facts={**_facts(), **card.facts, "seconds": round(time.perf_counter() - started, 1)})


def _evaluate_clip(
    names: Sequence[str],
    model: str | Path,
    split: Literal["dev", "test"],
    catalogue: Path | None,
    limit: int | None,
    with_scenes: bool,
    results: Path | None,
    table: TextIO | None,
) -> dict[str, Any]:
    """The suite of the two-tower model; "mini", the default of the command, stands for the one beside it."""
    from sensorium.evaluation.suites import clip
    from sensorium.two_tower import DEFAULT, TwoTower

    if list(names) != ["clip"]:
        raise UsageError("the suite clip examines another kind of model than the others; run it on its own.")
    towers = TwoTower(DEFAULT if str(model) == "mini" else model)
    with _progress("clip") as tick:
        card = clip.evaluate_clip(
            towers,
            catalogue=catalogue,
            pictures=limit or clip.PICTURES,
            split=split,
            with_scenes=with_scenes,
            progress=tick,
        )
    _show(card, table or sys.stderr)
    if results is not None:
        card.save(results)
    return {"model": towers.name, "suites": {"clip": card.to_dict()}}


def image_suite(
    model: Model,
    projector_only: str | Path | None = None,
    split: Literal["dev", "test"] = "test",
    catalogue: Path | None = None,
    limit: int | None = None,
    with_scenes: bool = True,
) -> Scorecard:
    """The image suite of one model; see `evaluate`."""
    import sensorium
    from sensorium.evaluation.subjects import CascadeSubject, ModelSubject
    from sensorium.evaluation.suites import image

    notes: list[str] = []
    items = _photo_items(split, limit, notes)
    items += _scene_items(catalogue, limit, notes) if with_scenes else []
    if not items:
        raise SensoriumError("No picture of the image suite can be had here; see the notes above and try again online.")
    plain = ModelSubject(sensorium.load(projector_only)) if projector_only else None
    started = time.perf_counter()
    with _progress("image") as tick:
        outcomes = image.collect(
            ModelSubject(model), items, cascade=CascadeSubject(model), projector_only=plain, progress=tick
        )
    seconds = time.perf_counter() - started
    facts = {**_facts(), "split": split, "questions": len(items), "seconds": round(seconds, 1)}
    facts["pictures"] = len({item.picture for item in items})
    return Scorecard("image", model.name, image.rows(items, outcomes), facts, notes)


def _photo_items(split: Literal["dev", "test"], limit: int | None, notes: list[str]) -> list[EvalItem]:
    from sensorium.evaluation import photos

    wanted = photos.photos(split)[:limit]
    return photos.photo_items(wanted, photos.fetch_photos(wanted, missing=notes.append))


def _scene_items(catalogue: Path | None, limit: int | None, notes: list[str]) -> list[EvalItem]:
    """Scenes from the test half of a catalogue; none, with a note, where there is none and none can be built."""
    from sensorium.evaluation import photos, scenes
    from sensorium.training.data.catalogue import registry_catalogue
    from sensorium.training.data.scenes import load_items
    from sensorium.training.data.stream import class_names

    if catalogue is None:
        try:
            catalogue = registry_catalogue(note="The scenes of the scorecard need it; --no-scenes leaves them out.")
        except SensoriumError as error:
            note = f"The scenes are left out, and the photographs alone are evaluated: {error}"
            notes.append(note)
            return []
    elif not catalogue.is_file():
        raise UsageError(f"there is no catalogue {catalogue}; give the catalogue.jsonl that training wrote.")
    rows = load_items(catalogue)
    trained = {word for row in rows if row.split == "train" for word in (row.name, *row.also)}
    trained |= {word for name, also in class_names() for word in (name, *also)}  # synthesised classes name them too
    sizes = scenes.Sizes() if limit is None else scenes.Sizes(*[limit] * 6)
    scenery = photos.ground_photos()
    grounds = scenes.ground_items(scenery, photos.fetch_photos(scenery, missing=notes.append))
    return scenes.scene_items([row for row in rows if row.split == "test"], trained, sizes, grounds=grounds)


def _facts() -> dict[str, Any]:
    from sensorium import __version__

    return {
        "sensorium": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _show(card: Scorecard, stream: TextIO) -> None:
    from rich.console import Console

    console = Console(file=stream)
    if not console.is_terminal:
        console = Console(file=stream, width=200)
    console.print(card.to_table())
    for note in card.notes:
        console.print(note, markup=False)


class _progress:
    """A progress bar on standard error, as a context manager that gives a function of (done, all)."""

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(label, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
