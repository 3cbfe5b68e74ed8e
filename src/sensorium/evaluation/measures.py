"""From outcomes to scores: one small function per kind of row, of one shape, so that any two columns can be paired."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.evaluation import captions, intervals, metrics
from sensorium.evaluation.intervals import Estimate, Floats, Statistic
from sensorium.evaluation.items import EvalItem, Outcome
from sensorium.evaluation.photos import synonyms


@dataclass(frozen=True)
class Measured:
    """A score ready for intervals: a statistic over `n` units in `clusters`; `values` [n] where it is a rate."""

    statistic: Statistic
    n: int
    clusters: NDArray[np.str_]
    values: Floats | None = None

    def estimate(self, resamples: int = intervals.RESAMPLES) -> Estimate:
        """The score with its interval: Wilson's at the effective size for rates, else the clustered bootstrap."""
        if self.values is not None:
            return intervals.rate(self.values, self.clusters)
        return intervals.bootstrap(self.statistic, self.n, self.clusters, resamples=resamples)


Measure = Callable[[Sequence[EvalItem], Sequence[Outcome]], Measured]
Constant = Callable[[Sequence[EvalItem]], float]


def beyond(first: Measured, second: Measured, resamples: int = intervals.RESAMPLES) -> tuple[Estimate, float | None]:
    """How far the first score is above the second on the same units: (difference with paired interval, McNemar p)."""
    difference = intervals.bootstrap(
        lambda weights: first.statistic(weights) - second.statistic(weights),
        first.n,
        first.clusters,
        resamples=resamples,
    )
    if first.values is None or second.values is None:
        return difference, None
    return difference, intervals.mcnemar(first.values > 0.5, second.values > 0.5)


# Yes or no ------------------------------------------------------------------------------------------------------------


def yes_no_auc(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """Area under the ROC curve of the yes-margin."""
    return _over(items, metrics.auc_statistic([o.margin for o in outcomes], _truth(items)))


def yes_no_balanced(threshold: float = 0.0) -> Measure:
    """Balanced accuracy of "margin > threshold"."""

    def measure(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
        said = [o.margin > threshold for o in outcomes]
        return _over(items, metrics.balanced_accuracy_statistic(said, _truth(items)))

    return measure


def yes_no_fitted(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """Balanced accuracy at the threshold that suits these very answers best: what a bias towards yes or no hides.

    It is fitted on what it is measured on, in every column alike, so it flatters all of them a little.
    """
    truth = _truth(items)
    if truth.all() or not truth.any():
        return yes_no_balanced()(items, outcomes)
    return yes_no_balanced(metrics.best_threshold([o.margin for o in outcomes], truth))(items, outcomes)


def yes_no_written(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """Balanced accuracy of the generated answer; one that says neither yes nor no is wrong."""
    truth = _truth(items)
    parsed = [metrics.parse_yes_no(o.text) for o in outcomes]
    said = [not t if p is None else p for p, t in zip(parsed, truth)]
    return _over(items, metrics.balanced_accuracy_statistic(said, truth))


# Groups ---------------------------------------------------------------------------------------------------------------


def group_right(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """G-Acc: all four of a 2x2 group right at threshold 0."""
    names, margins = _groups(items, outcomes)
    right = (margins > 0) == np.eye(2, dtype=bool)
    return _rate(right.all(axis=(1, 2)), names)


def group_ranked(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """Winoground's group score: each picture ranks the questions and each question ranks the pictures rightly.

    No threshold enters. Chance is 1/6; a sum of a picture's and a question's score can only tie, and gets 0.
    """
    names, m = _groups(items, outcomes)
    by_picture = (m[:, 0, 0] > m[:, 0, 1]) & (m[:, 1, 1] > m[:, 1, 0])
    by_question = (m[:, 0, 0] > m[:, 1, 0]) & (m[:, 1, 1] > m[:, 0, 1])
    return _rate(by_picture & by_question, names)


# Captions -------------------------------------------------------------------------------------------------------------


def noun_hit(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """The caption names a main thing of the picture, or a synonym."""
    hits = captions.noun_hits([o.text for o in outcomes], [i.nouns for i in items], synonyms())
    return _rate(np.array(hits, bool), _units(items))


def all_nouns(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """The caption names every main thing."""
    found = [captions.mentions(o.text, i.nouns, synonyms()) == set(i.nouns) for i, o in zip(items, outcomes)]
    return _rate(np.array(found, bool), _units(items))


def hallucination(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """CHAIR_s: captions with a word that is true of another picture of the set and certainly not of theirs."""
    words = {word for item in items for word in item.meta.get("present", ())}
    flawed = []
    for item, outcome in zip(items, outcomes):
        allowed = {*item.nouns, *item.meta.get("present", ()), *item.meta.get("unsure", ())}
        flawed.append(bool(captions.mentions(outcome.text, words) - allowed))
    return _rate(np.array(flawed, bool), _units(items))


def cider(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """CIDEr-D against one reference per picture; comparable only within this set."""
    scores = captions.cider_d_scores([o.text for o in outcomes], [[str(i.meta["caption"])] for i in items])
    return _over(items, metrics.mean_statistic(scores))


# Counts and choices ---------------------------------------------------------------------------------------------------


def count_within(tolerance: int) -> Measure:
    """The written number is at most `tolerance` off."""

    def measure(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
        parsed = [metrics.parse_count(o.text) for o in outcomes]
        near = [p is not None and abs(p - int(i.answer)) <= tolerance for p, i in zip(parsed, items)]
        return _rate(np.array(near, bool), _units(items))

    return measure


def count_error(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """Mean absolute error; an answer without a number counts as 0."""
    parsed = [metrics.parse_count(o.text) or 0 for o in outcomes]
    return _over(items, metrics.mean_statistic([min(abs(p - int(i.answer)), 10) for p, i in zip(parsed, items)]))


def choice_right(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """The most probable choice is the right one; a tie is wrong."""
    right = []
    for item, outcome in zip(items, outcomes):
        scores = np.asarray(outcome.scores)
        best = scores.max()
        right.append(bool((scores == best).sum() == 1 and item.choices[int(scores.argmax())] == item.answer))
    return _rate(np.array(right, bool), _units(items))


def choice_auc(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> Measured:
    """For two choices: area under the ROC curve of their score difference, free of a preference for one of them."""
    margins = [o.scores[0] - o.scores[1] for o in outcomes]
    return _over(items, metrics.auc_statistic(margins, [i.answer == i.choices[0] for i in items]))


# What needs no model --------------------------------------------------------------------------------------------------


def noun_chance(items: Sequence[EvalItem]) -> float:
    """The hit rate of captions that name the noun of a picture drawn at random."""
    return float(np.mean([bool(set(a.nouns) & set(b.nouns)) for a in items for b in items]))


def noun_majority(items: Sequence[EvalItem]) -> float:
    """The hit rate of the best single noun."""
    counts = Counter(noun for item in items for noun in set(item.nouns))
    return counts.most_common(1)[0][1] / len(items)


def count_majority(tolerance: int) -> Constant:
    """The rate of the best constant number."""
    return lambda items: max(float(np.mean([abs(int(i.answer) - n) <= tolerance for i in items])) for n in range(1, 11))


def count_error_majority(items: Sequence[EvalItem]) -> float:
    """The error of the best constant number."""
    return min(float(np.mean([abs(int(i.answer) - n) for i in items])) for n in range(1, 11))


def caption_majority(items: Sequence[EvalItem]) -> float:
    """The CIDEr-D of the best single caption, taken from the references."""
    references = [[str(i.meta["caption"])] for i in items]
    texts = {several[0] for several in references}
    return max((captions.cider_d([text] * len(references), references) for text in texts), default=math.nan)


def _truth(items: Sequence[EvalItem]) -> NDArray[np.bool_]:
    return np.array([item.answer == "yes" for item in items], bool)


def _units(items: Sequence[EvalItem]) -> NDArray[np.str_]:
    return np.array([item.unit for item in items], dtype=np.str_)


def _over(items: Sequence[EvalItem], statistic: Statistic) -> Measured:
    return Measured(statistic, len(items), _units(items))


def _rate(right: NDArray[np.bool_], units: NDArray[np.str_]) -> Measured:
    values = right.astype(np.float64)
    return Measured(metrics.mean_statistic(values), len(values), units, values)


def _groups(items: Sequence[EvalItem], outcomes: Sequence[Outcome]) -> tuple[NDArray[np.str_], Floats]:
    """(group names [G], margins [G, 2 pictures, 2 questions]); incomplete groups are left out."""
    found: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for item, outcome in zip(items, outcomes):
        found[str(item.meta["group"])][tuple(item.meta["cell"])] = outcome.margin
    whole = {name: cells for name, cells in found.items() if len(cells) == 4}
    margins = [[[cells[i, q] for q in range(2)] for i in range(2)] for cells in whole.values()]
    return np.array(list(whole), dtype=np.str_), np.array(margins, np.float64).reshape(-1, 2, 2)
