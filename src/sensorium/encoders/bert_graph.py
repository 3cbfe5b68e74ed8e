"""A BERT encoder as an ONNX graph, written from its safetensors: token ids to the mean over the tokens, and to each.

The architecture is that of Devlin et al. 2018 (arXiv 1810.04805): learnt positions, layer norm behind each half of a
block, exact GELU. Sentence transformers (arXiv 1908.10084) average its last hidden states over the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError

_OPSET, _IR_VERSION = 18, 9
EPSILON = 1e-12
HEAD_DIM = 32


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT, read off its weights."""

    vocabulary: int
    positions: int
    dim: int
    layers: int
    ffn: int


def shape_of(weights: Mapping[str, np.ndarray]) -> Shape:
    """The sizes. Raises SensoriumError for weights that are no BERT's."""
    try:
        vocabulary, dim = weights["embeddings.word_embeddings.weight"].shape
        positions = len(weights["embeddings.position_embeddings.weight"])
        ffn = len(weights["encoder.layer.0.intermediate.dense.weight"])
    except (KeyError, ValueError):
        raise SensoriumError("they are not the weights of a BERT encoder; name its model.safetensors.") from None
    layers = 0
    while f"encoder.layer.{layers}.output.dense.weight" in weights:
        layers += 1
    if dim % HEAD_DIM:
        raise SensoriumError(f"they are {dim} wide, which heads of {HEAD_DIM} do not divide; use a MiniLM.")
    return Shape(vocabulary, positions, dim, layers, ffn)


def weight_names(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every weight that decides the features, with its shape, in a fixed order."""
    dim, ffn = shape.dim, shape.ffn
    names: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, dim),
        "embeddings.position_embeddings.weight": (shape.positions, dim),
        "embeddings.token_type_embeddings.weight": (2, dim),
    }
    norms = ["embeddings.LayerNorm"]
    linears: dict[str, tuple[int, ...]] = {}
    for i in range(shape.layers):
        at = f"encoder.layer.{i}."
        linears |= {f"{at}attention.self.{name}": (dim, dim) for name in ("query", "key", "value")}
        linears |= {
            f"{at}attention.output.dense": (dim, dim),
            f"{at}intermediate.dense": (ffn, dim),
            f"{at}output.dense": (dim, ffn),
        }
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    for name, size in linears.items():
        names |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    for name in norms:
        names |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    return names


def checked(weights: Mapping[str, np.ndarray], shape: Shape) -> dict[str, np.ndarray]:
    """Those weights as float32. Raises SensoriumError for one that is missing, misshapen or not finite."""
    result = {}
    for name, size in weight_names(shape).items():
        array = weights.get(name)
        if array is None or array.shape != size or array.dtype.kind != "f":
            what = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise SensoriumError(f"the weight {name!r} is {what}, not float {list(size)}; name a BERT's weights.")
        if not np.isfinite(array).all():
            raise SensoriumError(f"the weight {name!r} holds values that are not finite; fetch the file again.")
        result[name] = np.ascontiguousarray(array, np.float32)
    return result


def build(weights: Mapping[str, np.ndarray], shape: Shape, metadata: Mapping[str, str]) -> bytes:
    """Serialise the encoder.

    Args:
        weights: as `checked` gives them.
        shape: their sizes.
        metadata: strings to carry in the model's metadata.

    Returns:
        An ONNX model: ``ids`` int64 [B, T] and ``mask`` float32 [B, T] (1 for a token, 0 for padding) to ``sequence``
        float32 [B, T, dim] and ``pooled`` [B, dim], its mean over the tokens. B and T are free.
    """
    from onnx import TensorProto, helper

    g = _Writer(weights)
    heads = shape.dim // HEAD_DIM
    x = g.node("Gather", g.weight("embeddings.word_embeddings.weight"), "ids")
    length = g.node("Shape", "ids", start=1, end=2)
    positions = g.node(
        "Slice", g.weight("embeddings.position_embeddings.weight"), g.ints("from", [0]), length, g.ints("rows", [0])
    )
    kind = g.constant("kind", weights["embeddings.token_type_embeddings.weight"][0])  # every text is a first sentence
    x = g.norm(g.node("Add", g.node("Add", x, positions), kind), "embeddings.LayerNorm")
    # 0 where a token may be attended to, a large negative number at padding: [B, 1, 1, T]
    hidden = g.node("Mul", g.node("Sub", "mask", g.constant("one", np.float32(1))), g.constant("far", np.float32(1e9)))
    hidden = g.node("Unsqueeze", hidden, g.ints("between", [1, 2]))
    split = g.ints("split", [0, 0, heads, HEAD_DIM])
    join = g.ints("join", [0, 0, shape.dim])
    scale = g.constant("scale", np.float32(HEAD_DIM**-0.5))
    for i in range(shape.layers):
        at = f"encoder.layer.{i}."
        query, key, value = (
            g.node("Transpose", g.node("Reshape", g.linear(x, f"{at}attention.self.{name}"), split), perm=order)
            for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = g.node("Add", g.node("Mul", g.node("MatMul", query, key), scale), hidden)
        mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
        mixed = g.node("Reshape", g.node("Transpose", mixed, perm=[0, 2, 1, 3]), join)
        x = g.norm(g.node("Add", g.linear(mixed, f"{at}attention.output.dense"), x), f"{at}attention.output.LayerNorm")
        y = g.linear(g.gelu(g.linear(x, f"{at}intermediate.dense")), f"{at}output.dense")
        x = g.norm(g.node("Add", y, x), f"{at}output.LayerNorm")
    column = g.node("Unsqueeze", "mask", g.ints("last", [2]))
    x = g.node("Mul", x, column, output="sequence")
    total = g.node("ReduceSum", x, g.ints("tokens", [1]), keepdims=0)
    g.node("Div", total, g.node("ReduceSum", "mask", g.ints("of", [1]), keepdims=1), output="pooled")
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        g.nodes,
        "bert",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("mask", floats, ["batch", "tokens"]),
        ],
        [
            helper.make_tensor_value_info("sequence", floats, ["batch", "tokens", shape.dim]),
            helper.make_tensor_value_info("pooled", floats, ["batch", shape.dim]),
        ],
        g.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="sensorium")
    helper.set_model_props(model, dict(metadata))
    model.ir_version = _IR_VERSION
    return model.SerializeToString()


class _Writer:
    """Collects nodes and initialisers; each method returns the name of the value it makes."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._to_tensor, self._weights = helper, numpy_helper.from_array, weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers.append(self._to_tensor(np.asarray(value), name))
        return name

    def ints(self, name: str, values: list[int]) -> str:
        return self.constant(name, np.array(values, np.int64))

    def weight(self, name: str) -> str:
        return self.constant(name, self._weights[name])

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, x: str, name: str) -> str:
        matrix = self.constant(f"{name}.weight", np.ascontiguousarray(self._weights[f"{name}.weight"].T))
        return self.node("Add", self.node("MatMul", x, matrix), self.weight(f"{name}.bias"))

    def norm(self, x: str, name: str) -> str:
        gain, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", x, gain, bias, axis=-1, epsilon=EPSILON)

    def gelu(self, x: str) -> str:
        if not any(value.name == "gelu.root" for value in self.initializers):
            self.constant("gelu.root", np.float32(2**0.5))
            self.constant("gelu.one", np.float32(1))
            self.constant("gelu.half", np.float32(0.5))
        inner = self.node("Add", self.node("Erf", self.node("Div", x, "gelu.root")), "gelu.one")
        return self.node("Mul", self.node("Mul", x, inner), "gelu.half")
