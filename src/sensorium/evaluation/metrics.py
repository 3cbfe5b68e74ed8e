"""Scores of answers: yes/no, choices, counts, 2x2 groups, retrieval. NumPy only, vectorised over bootstrap resamples.

A `..._statistic` takes weights [R, N] and gives one value per resample [R] (NaN where undefined), so that
`intervals.bootstrap` runs without a loop; the plain functions give a float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sensorium.evaluation.intervals import Estimate, Floats, Statistic, normal_quantile

# Yes or no ------------------------------------------------------------------------------------------------------------


def auc_statistic(scores: ArrayLike, labels: ArrayLike) -> Statistic:
    """The area under the ROC curve as a statistic of weights.

    P(score of a positive > score of a negative), ties counted half: no threshold and no answer bias enters.

    Args:
        scores: N finite numbers, higher for "yes".
        labels: N booleans, True for "yes".
    """
    values, positive = _finite(scores), np.asarray(labels, bool)
    if len(values) != len(positive):
        raise ValueError(f"{len(values)} scores were given for {len(positive)} labels.")
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.intp)

    def statistic(weights: Floats) -> Floats:
        if len(starts) == 0:
            return np.full(len(weights), np.nan)
        drawn, yes = weights[:, order], positive[order]
        ties_yes = np.add.reduceat(drawn * yes, starts, axis=1)
        ties_no = np.add.reduceat(drawn * ~yes, starts, axis=1)
        below = np.cumsum(ties_no, axis=1) - ties_no
        pairs = ties_yes.sum(axis=1) * ties_no.sum(axis=1)
        won = (ties_yes * (below + ties_no / 2)).sum(axis=1)
        return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)

    return statistic


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """The area under the ROC curve in [0, 1], ties counted half; NaN without both kinds of label."""
    return _once(auc_statistic(scores, labels), labels)


def delong(scores: ArrayLike, labels: ArrayLike, confidence: float = 0.95) -> Estimate:
    """AUC with DeLong's interval (DeLong et al. 1988) for independent items, on the logit scale.

    With several questions per picture use `intervals.bootstrap(auc_statistic(...), n, clusters)`.
    """
    values, positive = _finite(scores), np.asarray(labels, bool)
    x, y = values[positive], values[~positive]
    n = len(values)
    if len(x) < 2 or len(y) < 2:
        return Estimate(auc(values, positive), math.nan, math.nan, n, n)
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    area = float(wins.mean())
    variance = float(wins.mean(axis=1).var(ddof=1)) / len(x) + float(wins.mean(axis=0).var(ddof=1)) / len(y)
    if variance == 0 or area in (0.0, 1.0):
        return Estimate(area, area, area, n, n)
    z = normal_quantile(0.5 + confidence / 2)
    middle, spread = math.log(area / (1 - area)), z * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(middle + sign * spread))) for sign in (-1, 1))
    return Estimate(area, low, high, n, n)


def accuracy_statistic(predicted: ArrayLike, labels: ArrayLike) -> Statistic:
    """The share of right answers, as a statistic of weights."""
    return mean_statistic(np.asarray(predicted) == np.asarray(labels))


def balanced_accuracy_statistic(predicted: ArrayLike, labels: ArrayLike) -> Statistic:
    """The mean of the accuracies on "yes" and on "no" items: 0.5 for whoever always answers the same."""
    right, positive = np.asarray(predicted, bool) == np.asarray(labels, bool), np.asarray(labels, bool)

    def statistic(weights: Floats) -> Floats:
        on_yes = _ratio(weights @ (right & positive), weights @ positive)
        on_no = _ratio(weights @ (right & ~positive), weights @ ~positive)
        return (on_yes + on_no) / 2

    return statistic


def mcc_statistic(predicted: ArrayLike, labels: ArrayLike) -> Statistic:
    """Matthews' correlation of answers and truth, in [-1, 1]; 0 for whoever always answers the same."""
    said, positive = np.asarray(predicted, bool), np.asarray(labels, bool)

    def statistic(weights: Floats) -> Floats:
        tp, fp = weights @ (said & positive), weights @ (said & ~positive)
        fn, tn = weights @ (~said & positive), weights @ (~said & ~positive)
        spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return np.divide(tp * tn - fp * fn, spread, out=np.zeros(len(weights)), where=spread > 0)

    return statistic


def mean_statistic(values: ArrayLike) -> Statistic:
    """The weighted mean of N numbers."""
    numbers = np.asarray(values, np.float64)
    return lambda weights: _ratio(weights @ numbers, weights.sum(axis=1))


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """See `balanced_accuracy_statistic`."""
    return _once(balanced_accuracy_statistic(predicted, labels), labels)


def mcc(predicted: ArrayLike, labels: ArrayLike) -> float:
    """See `mcc_statistic`."""
    return _once(mcc_statistic(predicted, labels), labels)


def yes_ratio(predicted: ArrayLike) -> float:
    """The share of "yes" among the *predictions* (not the truth: a known slip of other harnesses)."""
    return float(np.mean(np.asarray(predicted, bool))) if len(np.asarray(predicted)) else math.nan


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold (yes if score > threshold) of the highest balanced accuracy, midway between two scores.

    Of several that are equally good, the one nearest to 0. Choose it on development items, never on those reported.
    """
    values, positive = _finite(scores), np.asarray(labels, bool)
    levels = np.unique(values)
    candidates = np.r_[levels[:1] - 1, (levels[1:] + levels[:-1]) / 2, levels[-1:] + 1]
    said = values[None, :] > candidates[:, None]
    quality = (said & positive).sum(1) / max(positive.sum(), 1) + (~said & ~positive).sum(1) / max((~positive).sum(), 1)
    best = candidates[np.isclose(quality, quality.max())]
    return float(best[np.argmin(np.abs(best))])


_WORD = re.compile(r"[a-z0-9']+")


def parse_yes_no(text: str) -> bool | None:
    """What a generated answer says: the first of "yes" and "no" in it; None for neither.

    Unlike in the official POPE script, an answer that says neither is not taken for yes, but is wrong.
    """
    for word in _WORD.findall(text.lower()):
        if word in ("yes", "yeah", "yep", "no", "not", "nope", "isn't", "aren't", "doesn't", "don't"):
            return word in ("yes", "yeah", "yep")
    return None


# Counts ---------------------------------------------------------------------------------------------------------------

_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: value for value, word in enumerate(_UNITS + _TEENS)}
_NUMBERS = _SMALL | {word: 10 * tens for tens, word in enumerate(_TENS, 2)}
_NUMBERS |= {
    "no": 0,
    "none": 0,
    "nothing": 0,
    "a": 1,
    "an": 1,
    "single": 1,
    "pair": 2,
    "couple": 2,
    "dozen": 12,
    "once": 1,
}


def parse_count(text: str) -> int | None:
    """The number that an answer names, in digits or words: "There are six." and "6" are both 6.

    Digits and number words win over "no", "a" and their like, which count only where nothing else does.
    """
    words = re.findall(r"\d+|[a-z]+", text.lower().replace("-", " "))
    vague: int | None = None
    for at, word in enumerate(words):
        if word.isdigit():
            return int(word[:9])
        if word not in _NUMBERS:
            continue
        value = _NUMBERS[word]
        following = words[at + 1] if at + 1 < len(words) else ""
        if 20 <= value < 100 and following in _UNITS[1:10]:
            return value + _NUMBERS[following]
        if word in _SMALL or value >= 20 or word in ("pair", "couple", "dozen"):
            return value
        vague = value if vague is None else vague
    return vague


@dataclass(frozen=True)
class CountScores:
    """Share of exact counts, share off by at most one, mean absolute error over the answers that held a number."""

    exact: float
    off_by_one: float
    mae: float
    unparsed: float


def count_scores(predicted: Sequence[int | None], truth: Sequence[int]) -> CountScores:
    """Scores of counts. An answer without a number (None) is wrong in the first two and left out of the third."""
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} counts were given for {len(truth)} items.")
    if not truth:
        return CountScores(math.nan, math.nan, math.nan, math.nan)
    errors = [None if p is None else abs(p - t) for p, t in zip(predicted, truth)]
    known = [e for e in errors if e is not None]
    return CountScores(
        exact=sum(e == 0 for e in known) / len(errors),
        off_by_one=sum(e <= 1 for e in known) / len(errors),
        mae=float(np.mean(known)) if known else math.nan,
        unparsed=1 - len(known) / len(errors),
    )


# Groups and retrieval -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupScores:
    """Shares of right pairs and quadruples; chance for a coin is 1/4, 1/4 and 1/16.

    Attributes:
        question: a question right on both images; 0 for whoever ignores the image.
        image: an image right on both questions; 0 for whoever ignores the question.
        group: all four right; 0 for any sum of an image score and a question score.
    """

    question: float
    image: float
    group: float


def group_scores(correct: ArrayLike) -> GroupScores:
    """Scores of 2x2 groups (NaturalBench, Li et al. 2024; Winoground, Thrush et al. 2022).

    Args:
        correct: booleans [G, 2 images, 2 questions], where question q is true of image i exactly when i == q.
    """
    right = np.asarray(correct, bool)
    if right.ndim != 3 or right.shape[1:] != (2, 2):
        raise ValueError(f"groups have the shape [G, 2, 2], not {list(right.shape)}.")
    if len(right) == 0:
        return GroupScores(math.nan, math.nan, math.nan)
    return GroupScores(float(right.all(1).mean()), float(right.all(2).mean()), float(right.all((1, 2)).mean()))


def recall_at_k(similarity: ArrayLike, positives: ArrayLike, k: int) -> float:
    """Share of queries with at least one positive among their K most similar candidates (CLIP's R@K).

    Ties count against the query, so that equal scores everywhere score no better than the worst order.

    Args:
        similarity: [Q, N], higher is more similar.
        positives: booleans [Q, N].
        k: 1 to N.
    """
    ranks = positive_ranks(similarity, positives)
    return float((ranks <= k).mean()) if len(ranks) else math.nan


def positive_ranks(similarity: ArrayLike, positives: ArrayLike) -> NDArray[np.intp]:
    """The rank [Q] of each query's best positive, 1 for the most similar; N + 1 for a query without any."""
    scores, right = np.asarray(similarity, np.float64), np.asarray(positives, bool)
    if scores.shape != right.shape or scores.ndim != 2:
        raise ValueError(
            f"similarities {list(scores.shape)} and positives {list(right.shape)} must have one shape [Q, N]."
        )
    best = np.where(right, scores, -np.inf).max(axis=1, initial=-np.inf)
    ranks = ((scores >= best[:, None]) & ~right).sum(axis=1) + 1
    return np.where(right.any(axis=1), ranks, scores.shape[1] + 1)


def _finite(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers.")
    return values


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def _once(statistic: Statistic, items: ArrayLike) -> float:
    return float(statistic(np.ones((1, len(np.asarray(items)))))[0])
