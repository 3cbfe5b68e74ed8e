"""The image suite: real photographs and test scenes, every row beside its baselines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorium.evaluation import intervals, measures
from sensorium.evaluation.asking import Asked, ask
from sensorium.evaluation.items import EvalItem, Outcome, Subject
from sensorium.evaluation.scorecard import Row

Pick = Callable[[EvalItem], bool]
Outcomes = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Plan:
    """How a row comes about: which items, which measure, and what a coin and a constant answer would get."""

    section: str
    name: str
    pick: Pick
    measure: measures.Measure
    chance: float | measures.Constant | None = None
    majority: float | measures.Constant | None = None
    unit: str = "rate"
    lower_is_better: bool = False


def collect(
    model: Subject,
    items: Sequence[EvalItem],
    *,
    cascade: Subject | None = None,
    projector_only: Subject | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> dict[str, list[Outcome]]:
    """Ask every item in every column.

    Args:
        model: what is examined; also asked without a picture (blind) and with another of its kind (shuffled).
        items: the questions.
        cascade: the label cascade over the same encoder and LLM.
        projector_only: the same without LoRA.
        progress: called with (done, all).
        seed: of the shuffle.

    Returns:
        Column -> outcomes, aligned with `items`.
    """
    others = _swapped(items, seed)
    own = list(range(len(items)))
    columns: dict[str, tuple[Subject, Sequence[int | None]]] = {
        "model": (model, own),
        "blind": (model, [None] * len(items)),
        "shuffled": (model, others),
    }
    if cascade is not None:
        columns["cascade"] = (cascade, own)
    if projector_only is not None:
        columns["projector only"] = (projector_only, own)
    asked = {
        name: [Asked.of(subject, item, None if at is None else items[at]) for item, at in zip(items, shown)]
        for name, (subject, shown) in columns.items()
    }
    answered = ask([each for column in asked.values() for each in column], progress)
    return {name: [answered[each] for each in column] for name, column in asked.items()}


def shuffled(items: Sequence[EvalItem], seed: int = 0) -> list[Any]:
    """For each item the image of another picture of its kind; items of one picture get the same other one."""
    return [items[at].image for at in _swapped(items, seed)]


def _swapped(items: Sequence[EvalItem], seed: int) -> list[int]:
    """For each item the place of one with another picture of its kind."""
    pictures: dict[str, dict[str, int]] = defaultdict(dict)
    for at, item in enumerate(items):
        pictures[str(item.meta.get("kind", ""))].setdefault(item.picture, at)
    swap: dict[tuple[str, str], int] = {}
    for kind, places in pictures.items():
        names = sorted(places)
        order = np.random.default_rng([seed, len(names)]).permutation(len(names))
        for at, place in enumerate(order):
            swap[kind, names[place]] = places[names[order[(at + 1) % len(order)]]]
    return [swap[str(item.meta.get("kind", "")), item.picture] for item in items]


def rows(items: Sequence[EvalItem], outcomes: Outcomes, resamples: int = intervals.RESAMPLES) -> list[Row]:
    """The scorecard's rows; those without items are left out."""
    made = []
    for plan in plans():
        chosen = [at for at, item in enumerate(items) if plan.pick(item)]
        if not chosen:
            continue
        mine = [items[at] for at in chosen]
        measured = {name: plan.measure(mine, [given[at] for at in chosen]) for name, given in outcomes.items()}
        difference, p = None, None
        if "cascade" in measured:
            difference, p = measures.beyond(measured["model"], measured["cascade"], resamples)
        made.append(
            Row(
                plan.section,
                plan.name,
                plan.chance(mine) if callable(plan.chance) else plan.chance,
                plan.majority(mine) if callable(plan.majority) else plan.majority,
                {name: each.estimate(resamples) for name, each in measured.items()},
                difference,
                p,
                plan.unit,
                plan.lower_is_better,
            )
        )
    return made


def plans() -> list[Plan]:
    """Every row of the suite, in the order shown."""
    return [*_yes_no("photo", "photographs"), *_photo_captions(), *_photo_groups(), *_scene_rows()]


def _is(task: str, kind: str, **facts: object) -> Pick:
    return lambda item: (
        item.task == task and item.meta.get("kind") == kind and all(item.meta.get(k) == v for k, v in facts.items())
    )


def _yes_no(kind: str, section: str) -> list[Plan]:
    asked = _is("yesno", kind)
    return [
        Plan(section, "yes/no, area under the curve", asked, measures.yes_no_auc, 0.5, 0.5),
        Plan(section, "yes/no, balanced accuracy", asked, measures.yes_no_balanced(), 0.5, 0.5),
        Plan(section, "yes/no, balanced accuracy, threshold fitted", asked, measures.yes_no_fitted, 0.5, 0.5),
        Plan(section, "yes/no, balanced accuracy of the written answer", asked, measures.yes_no_written, 0.5, 0.5),
        Plan(
            section,
            "yes/no, words of the encoder's labels, AUC",
            _is("yesno", kind, closed=True),
            measures.yes_no_auc,
            0.5,
            0.5,
        ),
        Plan(section, "yes/no, other words, AUC", _is("yesno", kind, closed=False), measures.yes_no_auc, 0.5, 0.5),
    ]


def _caption(section: str, name: str, pick: Pick) -> Plan:
    return Plan(section, name, pick, measures.noun_hit, measures.noun_chance, measures.noun_majority)


def _photo_captions() -> list[Plan]:
    section, told = "photographs", _is("caption", "photo")
    return [
        _caption(section, "caption names the main thing", told),
        _caption(section, "the same, words of the encoder's labels", _is("caption", "photo", closed=True)),
        _caption(section, "the same, other words", _is("caption", "photo", closed=False)),
        Plan(section, "caption names what is not there", told, measures.hallucination, lower_is_better=True),
        Plan(
            section, "caption, CIDEr-D within this set", told, measures.cider, None, measures.caption_majority, "number"
        ),
    ]


def _groups(section: str, what: str, kind: str) -> list[Plan]:
    asked = _is("yesno", kind)
    return [
        Plan(section, f"2x2 groups, {what}, all four right", asked, measures.group_right, 1 / 16, 0.0),
        Plan(section, f"2x2 groups, {what}, all four ranked right", asked, measures.group_ranked, 1 / 6, 0.0),
    ]


def _photo_groups() -> list[Plan]:
    return _groups("photographs", "which thing", "photo-group")


def _scene_rows() -> list[Plan]:
    section = "scenes of unseen objects"
    several, counted, beside = _is("caption", "scene-several"), _is("count", "scene-count"), _is("choice", "scene-side")
    return [
        *_yes_no("scene", section),
        Plan(
            section,
            "yes/no, words training never named, AUC",
            _is("yesno", "scene", trained=False),
            measures.yes_no_auc,
            0.5,
            0.5,
        ),
        Plan(section, "yes/no, two things in view, AUC", _is("yesno", "scene-several"), measures.yes_no_auc, 0.5, 0.5),
        _caption(section, "caption names the thing", _is("caption", "scene")),
        _caption(section, "the same, words of the encoder's labels", _is("caption", "scene", closed=True)),
        _caption(section, "the same, other words", _is("caption", "scene", closed=False)),
        _caption(section, "the same, words training never named", _is("caption", "scene", trained=False)),
        Plan(section, "caption names both of two things", several, measures.all_nouns, 0.0, 0.0),
        *_groups(section, "which thing", "scene-group"),
        Plan(section, "left or right, right choice", beside, measures.choice_right, 0.5, 0.5),
        Plan(section, "left or right, AUC", beside, measures.choice_auc, 0.5, 0.5),
        *_groups(section, "left and right", "scene-side-group"),
        Plan(section, "count of 1 to 5, exact", counted, measures.count_within(0), 0.2, measures.count_majority(0)),
        Plan(section, "count, at most one off", counted, measures.count_within(1), 0.52, measures.count_majority(1)),
        Plan(
            section,
            "count, mean error",
            counted,
            measures.count_error,
            1.6,
            measures.count_error_majority,
            "number",
            lower_is_better=True,
        ),
    ]
