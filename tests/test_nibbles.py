"""Four-bit blocks: what the file holds stays what it is; rounding stays within its bound; graphs compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.backbones import nibbles
from sensorium.backbones.graph_parts import MS, Parts
from sensorium.backbones.graph_products import nibbles_product
from test_quantize import packed, values


@pytest.mark.parametrize(("kind", "tolerance"), [("Q4_0", 0), ("Q4_1", 1e-6)])
def test_a_matrix_is_what_the_file_holds(kind: str, tolerance: float) -> None:
    raw = packed(kind, 64, 3, 0)
    matrix = nibbles.read(raw, kind, 96)
    assert matrix is not None
    assert matrix.codes.max() <= 15
    assert matrix.zeros.max() <= 15
    np.testing.assert_allclose(matrix.dequantize(), values(kind, raw), rtol=tolerance, atol=tolerance)
    assert matrix.rest.any() == (kind == "Q4_1")
    assert (np.abs(matrix.rest) <= 0.5001 * matrix.scales).all()  # zero points are in reach here


def test_constant_blocks_and_blocks_far_from_zero_are_left_to_the_rest() -> None:
    raw = packed("Q4_1", 4, 1, 2)
    raw[:, :2] = np.array([0, 0, 1e-3, 1e-3], "<f2").view(np.uint8).reshape(4, 2)
    raw[:, 2:4] = np.array([0.5, -0.5, 4, -4], "<f2").view(np.uint8).reshape(4, 2)
    np.testing.assert_allclose(nibbles.read(raw, "Q4_1", 32).dequantize(), values("Q4_1", raw), rtol=1e-6)


def test_other_types_and_partial_blocks_are_none() -> None:
    assert nibbles.read(np.zeros((2, 34), np.uint8), "Q8_0", 32) is None
    assert nibbles.read(np.zeros((2, 20), np.uint8), "Q4_1", 24) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 140), st.sampled_from([32, 64]), st.floats(-3, 3))
def test_rounding_stays_within_a_step_and_keeps_zero(seed: int, columns: int, block: int, shift: float) -> None:
    weight = (np.random.default_rng(seed).normal(size=(3, columns)) + shift).astype(np.float32)
    weight[0, 0] = 0
    matrix = nibbles.quantize(weight, block)
    found = matrix.dequantize()
    assert found.shape == weight.shape
    assert found[0, 0] == 0
    assert (np.abs(found - weight) <= np.repeat(matrix.scales, block, axis=1)[:, :columns] * 1.001).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8]))
def test_copies_sum_to_the_weight_in_as_many_more_steps(seed: int, copies: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(5, 32 // copies)).astype(np.float32)
    weight[0] = 0
    matrix = nibbles.repeated(weight, copies)
    assert matrix.codes.max() <= 15
    found = matrix.dequantize().reshape(5, copies, -1).sum(axis=1)
    step = np.abs(weight).max(axis=1, keepdims=True) / (7 * copies + 0.5)
    assert (np.abs(found - weight) <= 0.501 * step).all()


def test_pairs_are_packed_low_half_first() -> None:
    np.testing.assert_array_equal(nibbles.packed(np.array([[1, 2, 3]], np.uint8)), [[0x21, 0x03]])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("rank", [0, 1, 7, 16, 48])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("share", [0.06, 0.5])  # of the weights' norm: below and above where a LoRA gets eight bits
def test_the_product_has_the_rest_and_the_low_rank_pair_in_it(
    tmp_path: Path, kind: str, rank: int, rows: int, share: float
) -> None:
    import onnxruntime as ort
    from onnx import TensorProto, helper

    random = np.random.default_rng(1)
    matrix = nibbles.read(packed(kind, 48, 5, 3), kind, 160)
    assert matrix is not None
    # Blocks of equal scale, as in a real matrix: otherwise one of them decides everything.
    matrix = nibbles.Nibbles(
        matrix.codes,
        np.full_like(matrix.scales, 0.02),
        matrix.zeros,
        matrix.rest / matrix.scales * np.float32(0.02),
        160,
    )
    a, b = (random.normal(0, 0.1, shape).astype(np.float32) for shape in [(rank, 160), (48, rank)])
    delta = b @ a
    if rank:
        size = np.float32(share) * np.linalg.norm(matrix.dequantize()) / np.linalg.norm(delta)
        b, delta = b * size, delta * size
    x = (random.normal(size=(1, rows, 160)) + 1).astype(np.float32)  # a mean, so that the rest matters
    with (tmp_path / "weights.bin").open("wb") as file:
        parts = Parts(file)
        nibbles_product(parts, "x", matrix, "y", (a, b) if rank else None)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, rows, w]) for n, w in (("x", 160), ("y", 48))]
    graph = helper.make_graph(parts.nodes, "g", ends[:1], ends[1:], parts.protos)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0]
    wanted = x @ (matrix.dequantize() + delta).T
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()
    if kind == "Q4_1":
        bare = nibbles.Nibbles(matrix.codes, matrix.scales, matrix.zeros, 0 * matrix.rest, 160).dequantize()
        lost = x @ (bare + delta).T
        assert np.square(found - wanted).mean() < 0.1 * np.square(lost - wanted).mean()
    if rank:
        without = wanted - x @ delta.T
        assert np.square(found - wanted).mean() < 0.1 * np.square(without - wanted).mean()
        bits = {attribute.i for node in parts.nodes for attribute in node.attribute if attribute.name == "bits"}
        assert bits == ({4, 8} if share == 0.5 else {4})
