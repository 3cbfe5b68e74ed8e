"""From logits to a token: greedy or sampled, with log-probabilities. NumPy only, quick for vocabularies of 100,000."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import UsageError

Floats = NDArray[np.float32]

# Weights are first added up in runs of this length, because a running sum over a whole vocabulary is slow.
_RUN = 256


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens.

    Attributes:
        max_tokens: the most tokens to generate, at least 1.
        temperature: 0 takes the likeliest token; above 0, logits are divided by it before sampling.
        top_k: sample from the k likeliest tokens; 0 for all.
        top_p: sample from the fewest tokens that together hold this probability, in (0, 1] (arXiv 1904.09751).
        min_p: drop tokens less likely than this fraction of the likeliest one, in [0, 1) (arXiv 2407.01082).
        repetition_penalty: divide positive and multiply negative logits of tokens seen before, prompt included; 1 for
            none (arXiv 1909.05858).
        seed: makes sampling repeatable; None draws a new one.
        stop_ids: tokens that end the generation.
        logprobs: how many of the likeliest tokens each step reports.

    Raises:
        UsageError: a value is out of its range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    logprobs: int = 0

    def __post_init__(self) -> None:
        checks = [
            ("max_tokens", _whole(self.max_tokens) and self.max_tokens >= 1, "a whole number of 1 or more"),
            ("temperature", _real(self.temperature) and self.temperature >= 0, "a number of 0 (greedy) or more"),
            ("top_k", _whole(self.top_k) and self.top_k >= 0, "a whole number of 0 (off) or more"),
            ("top_p", _real(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("min_p", _real(self.min_p) and 0 <= self.min_p < 1, "a number of 0 (off) or more and below 1"),
            (
                "repetition_penalty",
                _real(self.repetition_penalty) and self.repetition_penalty > 0,
                "a number above 0 (1 for none)",
            ),
            ("seed", self.seed is None or (_whole(self.seed) and self.seed >= 0), "a whole number of 0 or more"),
            ("logprobs", _whole(self.logprobs) and self.logprobs >= 0, "a whole number of 0 (off) or more"),
        ]
        for name, fits, wanted in checks:
            if not fits:
                raise UsageError(f"{name}={getattr(self, name)!r} is out of range; give {wanted}.")


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(float(value))


@dataclass(frozen=True)
class Choice:
    """A chosen token, its natural-log probability under the model itself (before temperature and filters), and the
    `logprobs` likeliest tokens with theirs, likeliest first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Sampler:
    """Chooses the tokens of one sequence. `seen` are the ids of its prompt, for the repetition penalty."""

    def __init__(self, params: SamplingParams, vocab: int, seen: Iterable[int] = ()) -> None:
        self.params = params
        self._random = np.random.default_rng(params.seed)
        self._seen = np.zeros(vocab if params.repetition_penalty != 1 else 0, bool)
        if self._seen.size:
            self._seen[list(seen)] = True

    def __call__(self, logits: Floats) -> Choice:
        """Choose from logits float32 [vocab], which are left as they are."""
        params = self.params
        adjusted = self._penalised(logits)
        token = int(adjusted.argmax()) if params.temperature == 0 else self._sample(adjusted)
        if self._seen.size:
            self._seen[token] = True
        total = log_total(logits)
        top = [(int(i), float(logits[i] - total)) for i in top_ids(logits, params.logprobs)]
        return Choice(token, float(logits[token] - total), top)

    def _penalised(self, logits: Floats) -> Floats:
        if not self._seen.size:
            return logits
        ids, penalty = np.flatnonzero(self._seen), np.float32(self.params.repetition_penalty)
        adjusted, values = logits.copy(), logits[ids]
        adjusted[ids] = np.where(values > 0, values / penalty, values * penalty)
        return adjusted

    def _sample(self, logits: Floats) -> int:
        """Filters in the order of transformers: temperature, top-k, top-p, min-p."""
        params = self.params
        # The likeliest token gets weight 1. Weights are float32, which is ten times faster; only sums are float64.
        weights = np.exp((logits - logits.max()) / np.float32(min(max(params.temperature, 1e-4), 1e30)))
        ids: NDArray[np.int64] | None = None
        if params.top_k and params.top_k < len(weights):
            ids = top_ids(weights, params.top_k)
        if params.top_p < 1:
            kept = _nucleus(weights if ids is None else weights[ids], params.top_p)
            ids = kept if ids is None else ids[kept]
        if params.min_p:
            strong = np.flatnonzero((weights if ids is None else weights[ids]) >= np.float32(params.min_p))
            ids = strong if ids is None else ids[strong]
        drawn = _draw(weights if ids is None else weights[ids], self._random.random())
        return drawn if ids is None else int(ids[drawn])


def _nucleus(weights: Floats, top_p: float) -> NDArray[np.int64]:
    """Indices of the fewest largest weights that hold `top_p` of the sum, ascending; of equal ones the first."""
    # Sorting values alone is far faster than sorting indices by value.
    falling = np.sort(weights)[::-1]
    sums = np.cumsum(falling, dtype=np.float64)
    count = min(int(np.searchsorted(sums, top_p * sums[-1], side="left")) + 1, len(falling))
    least = falling[count - 1]
    above = np.flatnonzero(weights > least)
    ties = np.flatnonzero(weights == least)[: count - len(above)]
    return np.concatenate([above, ties])


def _draw(weights: Floats, point: float) -> int:
    """The index at which the running sum of the weights passes `point` (in 0..1) of the whole sum."""
    starts = np.arange(0, len(weights), _RUN)
    runs = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = point * runs[-1]
    run = min(int(np.searchsorted(runs, target, side="right")), len(runs) - 1)
    inside = np.cumsum(weights[starts[run] : starts[run] + _RUN], dtype=np.float64)
    before = runs[run - 1] if run else 0.0
    at = int(np.searchsorted(inside, target - before, side="right"))
    return int(starts[run]) + min(at, len(inside) - 1)


def top_ids(values: Floats, count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest values, largest first; of equal ones the smaller index first."""
    count = min(count, len(values))
    if not count:
        return np.empty(0, np.int64)
    if count < len(values):
        # Everything at least as large as the count-th value, so that ties are broken by index and not by chance.
        least = np.partition(values, len(values) - count)[len(values) - count]
        ids = np.flatnonzero(values >= least)
    else:
        ids = np.arange(len(values))
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def log_total(logits: Floats) -> float:
    """log(sum(exp(logits))) over the last axis of a vector."""
    largest = logits.max()
    return float(largest) + math.log(float(np.exp(logits - largest).sum(dtype=np.float64)))


def log_softmax(logits: Floats) -> Floats:
    """Natural-log probabilities float32 [..., vocab]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return shifted
