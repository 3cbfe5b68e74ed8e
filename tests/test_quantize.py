"""Eight-bit blocks: what is exact stays exact, what is rounded stays within its bound; threads; prefix-cache bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.backbones import threads
from sensorium.backbones.quantize import BLOCK, quantize, recode, stack
from sensorium.backbones.quants import BY_NAME, dequantize


def packed(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Random GGUF rows whose half-precision scales are sane."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, blocks, BY_NAME[kind].size), np.uint8)
    raw[..., :2] = (10 ** random.uniform(-4, 0, (rows, blocks))).astype("<f2")[..., None].view(np.uint8)
    if kind == "Q4_1":
        step = np.ascontiguousarray(raw[..., :2]).view("<f2")[..., 0].astype(np.float32)
        offset = (-step * random.uniform(0, 15, step.shape)).astype("<f2")
        raw[..., 2:4] = offset[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def values(kind: str, raw: np.ndarray) -> np.ndarray:
    return dequantize(raw.reshape(-1), BY_NAME[kind]).reshape(len(raw), -1)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_types_with_whole_zero_points_are_recoded_exactly(kind: str) -> None:
    raw = packed(kind, 16, 3, 0)
    np.testing.assert_array_equal(recode(raw, kind, 96).dequantize(), values(kind, raw))


def test_q4_1_is_recoded_far_within_its_own_step() -> None:
    raw = packed("Q4_1", 400, 8, 1)
    step = np.ascontiguousarray(raw.reshape(400, 8, -1)[..., :2]).view("<f2")[..., 0].astype(np.float32)
    error = np.abs(recode(raw, "Q4_1", 256).dequantize() - values("Q4_1", raw)).reshape(400, 8, BLOCK) / step[..., None]
    assert error.max() < 0.031
    assert error.mean() < 0.006
    rounded = np.abs(quantize(values("Q4_1", raw)).dequantize() - values("Q4_1", raw)).reshape(400, 8, BLOCK)
    assert error.mean() < 0.5 * (rounded / step[..., None]).mean()  # better than rounding a second time


def test_q4_1_blocks_without_a_zero_in_reach_are_rounded() -> None:
    raw = packed("Q4_1", 4, 1, 2)
    raw[:, :2] = np.array([0, 0, 1e-3, 1e-3], "<f2").view(np.uint8).reshape(4, 2)
    raw[:, 2:4] = np.array([0.5, -0.5, 4, -4], "<f2").view(np.uint8).reshape(4, 2)
    found, wanted = recode(raw, "Q4_1", 32).dequantize(), values("Q4_1", raw)
    np.testing.assert_allclose(found, wanted, rtol=1 / 255)


def test_other_types_and_partial_blocks_have_no_such_form() -> None:
    assert recode(np.zeros((2, 144), np.uint8), "Q4_K", 256) is None
    assert recode(np.zeros((2, 16), np.uint8), "F16", 8) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70), st.sampled_from([1e-20, 1e-3, 1.0, 1e6]), st.floats(-3, 3))
def test_rounding_stays_within_half_a_step_and_keeps_zero(seed: int, columns: int, size: float, shift: float) -> None:
    weight = ((np.random.default_rng(seed).normal(size=(3, columns)) + shift) * size).astype(np.float32)
    weight[0, 0] = 0
    blocks = quantize(weight)
    found = blocks.dequantize()
    assert found.shape == weight.shape
    assert found[0, 0] == 0
    steps = np.repeat(blocks.scales, BLOCK, axis=1)[:, :columns]
    # Half a step by rounding the value, and as much by rounding the zero point where the range is clipped by it.
    assert (np.abs(found - weight) <= steps * 1.001).all()
    assert blocks.codes.shape == (3, -(-columns // BLOCK), BLOCK)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not quantize(np.zeros((2, 40), np.float32)).dequantize().any()


def test_stacked_matrices_keep_their_rows() -> None:
    parts = [quantize(np.random.default_rng(i).normal(size=(i + 1, 64)).astype(np.float32)) for i in range(3)]
    whole = stack(parts).dequantize()
    np.testing.assert_array_equal(whole, np.concatenate([part.dequantize() for part in parts]))


def test_threads_are_the_physical_cores_that_may_be_used(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(threads, "_CPUS", tmp_path)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")

    def cores(allowed: set[int]) -> int:
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: allowed, raising=False)
        threads.physical_cores.cache_clear()
        return threads.physical_cores()

    assert cores(set(range(8))) == 4
    assert cores({0, 4}) == 1
    assert cores({0, 1, 4}) == 2
    assert cores({90, 91}) == 2  # no topology: every CPU counts
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cores(set(range(8))) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores(set(range(8))) == 4
    threads.physical_cores.cache_clear()
