"""Products for reading prompts: what they round, and that a position's result is its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tiny_llm
from sensorium.backbones.engine import Engine, Segment
from sensorium.backbones.graph_parts import MS, Parts
from sensorium.backbones.graph_rows import rows_of, rows_product
from sensorium.backbones.graph_runner import READING

IN, OUT = 96, 40


def product(x: np.ndarray, weight: np.ndarray, most: float | None) -> np.ndarray:
    import onnxruntime

    parts = Parts(io.BytesIO())
    rows_product(parts, "x", weight, "y", most)
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n", width])
        for name, width in (("x", IN), ("y", OUT))
    ]
    graph = helper.make_graph(parts.nodes, "product", sides[:1], sides[1:], parts.protos)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    session = onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return np.asarray(session.run(["y"], {"x": x})[0])


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (1, count, IN)).astype(np.float32)


def weights(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (OUT, IN)).astype(np.float32)


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("most", [8.0, None])
def test_inputs_are_hardly_rounded(most: float | None) -> None:
    codes, scales = rows_of(weights())
    exact = (codes.astype(np.float32) * scales).T  # eight bits stand for it exactly
    x = np.clip(vectors(5), -8, 8)
    assert off(product(x, exact, most), x @ exact.T) < 5e-4


def test_weights_are_rounded_to_a_row_of_eight_bits() -> None:
    x = vectors(5)
    assert 1e-3 < off(product(x, weights(), 8.0), x @ weights().T) < 0.012


def test_the_size_of_an_input_does_not_matter_where_each_is_scaled() -> None:
    x = vectors(3)
    x[0, 1] *= 1e4
    x[0, 2] *= 1e-4
    found, wanted = product(x, weights(), None)[0], (x @ weights().T)[0]
    assert all(off(found[i], wanted[i]) < 0.015 for i in range(3))


def test_a_position_gets_the_same_bits_whatever_stands_beside_it() -> None:
    x = vectors(37)
    whole = product(x, weights(), None)
    for begin, end in ((0, 1), (3, 5), (20, 37)):
        np.testing.assert_array_equal(product(x[:, begin:end], weights(), None), whole[:, begin:end])


def test_zeros_stay_zeros() -> None:
    assert not product(np.zeros((1, 2, IN), np.float32), np.zeros((OUT, IN), np.float32), None).any()


def test_small_models_of_four_bits_have_a_graph_for_prompts(tmp_path: Path) -> None:
    four = tiny_llm.prepared(tmp_path / "four", quantization="int8", four_bits=True)
    exact = tiny_llm.prepared(tmp_path / "exact", quantization="fp32", four_bits=True)
    for quantization, bits in (("int8", False), ("fp32", True)):
        other = tiny_llm.prepared(tmp_path / f"{quantization}{bits}", quantization=quantization, four_bits=bits)
        assert not (other / READING).exists()
    prompt = [Segment(ids=tuple(range(40)))]
    engine, wanted = Engine(four, threads=1), Engine(exact, threads=1).logits(prompt)
    # It rounds no more than the graph that decodes.
    assert 0 < off(engine.logits(prompt), wanted) < 1.2 * off(engine.logits(prompt, decoding=True), wanted)
    assert not np.array_equal(engine.logits(prompt), engine.logits(prompt, decoding=True))
    assert onnx.load(four / READING, load_external_data=False).graph.output[0].name == "logits"
