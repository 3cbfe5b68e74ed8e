"""Choosing tokens: filters against their definitions, seeds, penalties, log-probabilities, bad values."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.backbones.sampling import Sampler, SamplingParams, _draw, _nucleus, log_softmax, log_total, top_ids
from sensorium.errors import UsageError

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def drawn(logits: np.ndarray, count: int = 4000, **options: float) -> dict[int, float]:
    """Relative frequencies of sampled tokens."""
    sampler = Sampler(SamplingParams(temperature=options.pop("temperature", 1.0), seed=0, **options), len(logits))
    tokens, counts = np.unique([sampler(logits).token for _ in range(count)], return_counts=True)
    return {int(token): number / count for token, number in zip(tokens, counts)}


def test_greedy_takes_the_likeliest_and_reports_the_models_own_probabilities() -> None:
    choice = Sampler(SamplingParams(logprobs=2), 5)(LOGITS)
    assert choice.token == 1
    assert choice.logprob == pytest.approx(math.log(0.4), abs=1e-6)
    assert [token for token, _ in choice.top] == [1, 3]
    assert [value for _, value in choice.top] == pytest.approx([math.log(0.4), math.log(0.25)], abs=1e-6)


def test_sampling_follows_the_distribution_and_the_temperature() -> None:
    found = drawn(LOGITS)
    assert found == pytest.approx({0: 0.05, 1: 0.4, 2: 0.1, 3: 0.25, 4: 0.2}, abs=0.03)
    cold = drawn(LOGITS, temperature=0.5)
    weights = np.exp(LOGITS) ** 2
    assert cold == pytest.approx(dict(enumerate(weights / weights.sum())), abs=0.03)
    assert set(drawn(LOGITS, 50, temperature=1e-9)) == {1}


def test_filters_keep_the_right_tokens_and_renormalise() -> None:
    assert drawn(LOGITS, top_k=2) == pytest.approx({1: 0.4 / 0.65, 3: 0.25 / 0.65}, abs=0.03)
    assert set(drawn(LOGITS, top_p=0.41)) == {1, 3}  # 0.4 alone does not reach 0.41
    assert set(drawn(LOGITS, top_p=0.39)) == {1}
    assert set(drawn(LOGITS, top_p=1e-9)) == {1}
    assert set(drawn(LOGITS, min_p=0.4)) == {1, 3, 4}  # at least 0.16
    # Top-p counts within what top-k left: 0.4 / 0.85 = 0.47, with the second 0.76.
    assert set(drawn(LOGITS, top_k=3, top_p=0.5)) == {1, 3}
    assert set(drawn(LOGITS, top_k=99)) == {0, 1, 2, 3, 4}


def test_a_nucleus_may_be_wide_and_have_ties() -> None:
    flat = np.zeros(5000, np.float32)
    found = drawn(flat, top_p=0.9, count=3000)
    assert len(found) > 1500
    assert 4400 < max(found) < 4500  # exactly 4,500 tokens, those with the smallest ids


def test_a_seed_repeats_and_another_differs() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1, seed=seed), 5)
        return [sampler(LOGITS).token for _ in range(40)]

    assert run(3) == run(3) != run(4)
    assert run(None) != run(None)


def test_the_penalty_weakens_what_was_seen_and_only_that() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    before = logits.copy()
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 4, seen=[0])
    assert [sampler(logits).token for _ in range(3)] == [1, 0, 0]  # 1.5 beats 1.0; then 1.0 beats 0.75
    negative = Sampler(SamplingParams(repetition_penalty=2.0), 2, seen=[0])
    assert negative(np.array([-1.0, -1.5], np.float32)).token == 1  # -2 after the penalty
    np.testing.assert_array_equal(logits, before)


def test_log_probabilities_hold_for_large_logits() -> None:
    logits = np.array([[1e4, 1e4, -1e4]], np.float32)
    np.testing.assert_allclose(log_softmax(logits)[0, :2], -math.log(2), atol=1e-6)
    assert log_total(logits[0]) == pytest.approx(1e4 + math.log(2))


def test_ties_go_to_the_smaller_index() -> None:
    assert top_ids(np.array([1, 3, 3, 3, 0], np.float32), 2).tolist() == [1, 2]
    assert top_ids(np.array([1, 3, 3], np.float32), 9).tolist() == [1, 2, 0]
    assert top_ids(np.array([1, 3], np.float32), 0).tolist() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", 1),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 1.0),
        ("logprobs", -1),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name}={value!r} is out of range"):
        SamplingParams(**{name: value})


def test_numpy_numbers_are_numbers() -> None:
    params = SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0.5))
    assert dataclasses.asdict(params)["max_tokens"] == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=1, max_size=12), st.floats(0.01, 0.999))
def test_a_nucleus_is_the_smallest_that_holds_enough(weights: list[float], top_p: float) -> None:
    values = np.array([*weights, 1.0], np.float32)
    kept = _nucleus(values, top_p)
    wanted = top_p * values.sum(dtype=np.float64)
    falling = np.sort(values)[::-1].astype(np.float64)
    assert values[kept].sum(dtype=np.float64) >= wanted
    assert falling[: len(kept) - 1].sum() < wanted
    assert sorted(values[kept], reverse=True) == falling[: len(kept)].tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1500), st.floats(0, 1, exclude_max=True), st.integers(0, 999))
def test_a_draw_is_where_the_running_sum_passes_the_point(count: int, point: float, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 3, count).astype(np.float32)
    weights[-1] = 1
    sums = np.cumsum(weights, dtype=np.float64)
    assert _draw(weights, point) == np.searchsorted(sums, point * sums[-1], side="right")
