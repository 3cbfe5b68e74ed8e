"""Products with weight matrices as ONNX operators: float32, eight bits, and four bits with what they leave over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones import nibbles
from sensorium.backbones.graph_parts import MS, Parts
from sensorium.backbones.nibbles import Nibbles
from sensorium.backbones.quantize import BLOCK, Blocks, quantize

Floats = NDArray[np.float32]

# int8 activations: the accuracy level of MatMulNBits that uses integer dot products (VNNI, AMX, NEON).
_INT8_ACTIVATIONS = 4
# Four bits round a product of a LoRA by about 7 % of itself. Up to this share of the weights' norm, that is half a
# percent of theirs, less than what eight bits round off their inputs.
_LARGE = 0.07


def float_product(parts: Parts, x: str, weight: Floats, name: str) -> str:
    """`x` [..., in] times a matrix [out, in]."""
    return parts.node("FusedMatMul", [x, parts.tensor(f"{name}.weight", weight)], [name], MS, transB=1)


def blocks_product(parts: Parts, x: str, blocks: Blocks, name: str) -> str:
    """`x` times a matrix of eight-bit blocks."""
    inputs = [x, parts.tensor(f"{name}.codes", blocks.codes), _scales(parts, blocks.scales, name)]
    if (blocks.zeros != 128).any():  # 128 is what MatMulNBits assumes
        inputs.append(parts.tensor(f"{name}.zeros", blocks.zeros))
    return _product(parts, inputs, name, K=blocks.columns, N=blocks.rows, bits=8, block_size=BLOCK)


def rounded_product(parts: Parts, x: str, matrix: Nibbles, name: str) -> str:
    """`x` times a matrix of four-bit blocks; its `rest` is not looked at."""
    codes = parts.tensor(f"{name}.codes", nibbles.packed(matrix.codes))
    zeros = parts.tensor(f"{name}.zeros", nibbles.packed(matrix.zeros))
    inputs = [x, codes, _scales(parts, matrix.scales, name), zeros]
    return _product(parts, inputs, name, K=matrix.columns, N=matrix.rows, bits=4, block_size=matrix.block)


def nibbles_product(
    parts: Parts, x: str, matrix: Nibbles, name: str, low_rank: tuple[Floats, Floats] | None = None
) -> str:
    """`x` times a four-bit matrix with its `rest`, plus, with `low_rank` A [r, in] and B [out, r], times `B A`.

    `x` is widened by `A x` and by the means of its blocks, the matrix by the columns that these are multiplied with
    (see `nibbles`): one large product instead of three. A and B have four bits, because the time that they cost is that
    of reading them, and B more where it leaves room in a block; both have eight where `B A` is large.
    """
    inputs, means = [x], matrix.rest * np.float32(BLOCK)
    if low_rank is not None:
        a, b = low_rank
        product, copies = f"{name}.a", 1
        if np.linalg.norm(b @ a) > _LARGE * np.linalg.norm(matrix.dequantize()):
            a, b = _filling(*_two_digits(a, b), BLOCK)
            blocks_product(parts, x, quantize(a), product)
        else:
            copies = max(1, BLOCK >> (len(a) - 1).bit_length())
            a, b = _filling(a, b, BLOCK // copies)
            rounded_product(parts, x, nibbles.quantize(a), product)
        inputs += [product] * copies
        matrix = nibbles.beside(matrix, nibbles.repeated(b, copies))
    if means.any():
        inputs.append(parts.node("AveragePool", [x], [f"{name}.means"], kernel_shape=[BLOCK], strides=[BLOCK]))
        matrix = nibbles.beside(matrix, nibbles.quantize(means))
    if len(inputs) > 1:
        x = parts.node("Concat", inputs, [f"{name}.wide"], axis=-1)
    return rounded_product(parts, x, matrix, name)


def _two_digits(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The pair A, B, and what four bits lose of B (half a step at most): 8 times as large, for an eighth of A, so that
    it fits into the range of the same symmetric blocks."""
    digit = np.float32(8)
    lost = b - nibbles.quantize(b, symmetric=True).dequantize()
    return np.concatenate([a, a / digit]), np.concatenate([b, lost * digit], axis=1)


def _filling(a: Floats, b: Floats, multiple: int) -> tuple[Floats, Floats]:
    """The pair with zeros up to a rank that is a multiple of this, so that the columns after it begin a block of their
    own and share no scale with it."""
    missing = -len(a) % multiple
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))


def _scales(parts: Parts, scales: Floats, name: str) -> str:
    return parts.tensor(f"{name}.scales", scales.reshape(-1))


def _product(parts: Parts, inputs: list[str], name: str, **sizes: int) -> str:
    return parts.node("MatMulNBits", inputs, [name], MS, accuracy_level=_INT8_ACTIVATIONS, **sizes)
