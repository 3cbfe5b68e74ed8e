"""How sure a number is: intervals, tests and resampling that respect clusters.

Questions about the same picture are not independent: a picture that the encoder misreads spoils all of its questions.
So every interval here takes `clusters` (one label per item, the picture) and resamples or counts whole clusters
(Miller 2024, "Adding error bars to evals", arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights [R, N] of N items in R resamples -> the statistic in each [R]; NaN where it is undefined."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval. `n` counts items, `clusters` the independent groups they come from."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of `value`."""
        return self.low > value or self.high < value


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1] and never empty (Wilson 1927).

    Args:
        successes: number of successes, 0 to `n`; may be fractional (effective counts).
        n: number of trials, above 0.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: `n` or `successes` is out of range.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials cannot be.")
    z = normal_quantile(0.5 + confidence / 2)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if successes == 0 else max(0.0, middle - half)), (1.0 if successes == n else min(1.0, middle + half))


def rate(correct: ArrayLike, clusters: ArrayLike | None = None, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's interval at the effective sample size.

    The effective size is n divided by the design effect: the clustered variance of the mean over that of independent
    items (Kish 1965), at least 1. Where all items agree, no variance can be estimated and each cluster counts as one.

    Args:
        correct: N values in [0, 1], usually 0 or 1.
        clusters: N labels; `None` for independent items.
    """
    values = np.asarray(correct, np.float64)
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    index, count = cluster_index(clusters, n)
    p = float(values.mean())
    effective = float(n)
    if count < n:
        if p in (0.0, 1.0):
            effective = float(count)
        else:
            sums = np.bincount(index, values - p, count)
            clustered = float((sums**2).sum()) / n**2 * count / max(count - 1, 1)
            effective = n / max(1.0, clustered / (p * (1 - p) / n))
    low, high = wilson(p * effective, effective, confidence)
    return Estimate(p, low, high, n, count)


def cluster_index(clusters: ArrayLike | None, n: int) -> tuple[NDArray[np.intp], int]:
    """Labels -> (index of each item's cluster [N], number of clusters). `None` makes each item its own cluster."""
    if clusters is None:
        return np.arange(n), n
    labels = np.asarray(clusters)
    if len(labels) != n:
        raise ValueError(f"{len(labels)} cluster labels were given for {n} items.")
    unique, index = np.unique(labels, return_inverse=True)
    return index.reshape(-1), len(unique)


def resample_weights(clusters: ArrayLike | None, n: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often each item is drawn [R, N] when whole clusters are drawn with replacement."""
    index, count = cluster_index(clusters, n)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws[:, index].astype(np.float64)


def bootstrap(
    statistic: Statistic,
    n: int,
    clusters: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic with its percentile bootstrap interval, resampling clusters.

    Paired differences need nothing more: subtract two statistics in `statistic`, and both see the same resamples.

    Args:
        statistic: weights [R, N] -> values [R]; see `metrics` for the vectorised ones.
        n: number of items.
        clusters: N labels; `None` for independent items.
    """
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    value = float(statistic(np.ones((1, n)))[0])
    values = statistic(resample_weights(clusters, n, resamples, seed))
    values = values[~np.isnan(values)]
    if math.isnan(value) or len(values) == 0:
        return Estimate(value, math.nan, math.nan, n, cluster_index(clusters, n)[1])
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n, cluster_index(clusters, n)[1])


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided exact McNemar p-value: are two systems right equally often on the same items?

    Args:
        first, second: N booleans, whether each system got the item right.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail = sum(
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
        for i in range(k + 1)
    )
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing several rows at once (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = running
    return adjusted


def normal_quantile(p: float) -> float:
    """The standard normal's quantile, by bisection of `math.erfc` (exact to double precision, no SciPy)."""
    if not 0 < p < 1:
        raise ValueError(f"a probability of {p} has no normal quantile; give one between 0 and 1.")
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        if 0.5 * math.erfc(-middle / math.sqrt(2)) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2
