"""Products for reading prompts: weights of eight bits with a scale for each output, inputs of fourteen bits.

Decoding is bound by memory and wants four-bit blocks (`nibbles`); a prompt of many positions is bound by arithmetic,
and blocks, each with a scale of its own, keep matrix units idle. Here all of a row shares one scale, so that one large
integer product does the work (AMX, VNNI, NEON). What this rounds off the weights (0.8 % of their norm, a tenth of what
four bits lost before) is made up for by inputs that are hardly rounded at all: each is written in two digits of seven
bits, which are two rows of the same product. Seven, since eight overflow in the pairwise sums of AVX2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.graph_parts import MS, Parts

Floats = NDArray[np.float32]

_ZERO, _HALF = 64, 63
"""The code of 0, and how far codes reach to either side of it."""
_SECOND = np.float32(1 / (2 * _HALF))
"""The second digit's step in steps of the first: what is left over is at most half a step."""
_TINY = 1e-12


def rows_of(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A matrix [out, in] as codes int8 [in, out] within -127..127 and scales float32 [out]."""
    scales = np.abs(weight).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    codes = np.rint(weight / scales[:, None]).astype(np.int8)
    return np.ascontiguousarray(codes.T), scales


def rows_product(parts: Parts, x: str, weight: Floats, name: str, most: float | None = None) -> str:
    """`x` [batch, positions, in] times a matrix [out, in].

    Args:
        most: the largest magnitude that `x` can have; None to bring each position to a root mean square of 1 first.
    """
    if most is not None:
        return _two_digits(parts, x, weight, name, most)
    # A vector of n numbers whose root mean square is 1 holds none above the root of n.
    width = weight.shape[1]
    ones = parts.tensor(f"ones.{width}", np.ones(width, np.float32))
    unit, inverse = f"{name}.unit", f"{name}.inverse"
    parts.node("SimplifiedLayerNormalization", [x, ones], [unit, inverse], axis=-1, epsilon=_TINY, stash_type=1)
    return parts.node("Div", [_two_digits(parts, unit, weight, f"{name}.scaled", width**0.5), inverse], [name])


def _two_digits(parts: Parts, x: str, weight: Floats, name: str, most: float) -> str:
    codes, scales = rows_of(weight)
    step = np.float32(most / _HALF)
    first = parts.tensor(f"{name}.step", np.array(step))
    second = parts.tensor(f"{name}.second", np.array(step * _SECOND))
    zero = parts.tensor("digits.zero", np.array(_ZERO, np.uint8))
    share = parts.tensor("digits.share", np.array(_SECOND))
    parts.node("QuantizeLinear", [x, first, zero], [f"{name}.high"])
    parts.node("DequantizeLinear", [f"{name}.high", first, zero], [f"{name}.rounded"])
    parts.node("Sub", [x, f"{name}.rounded"], [f"{name}.left"])
    parts.node("QuantizeLinear", [f"{name}.left", second, zero], [f"{name}.low"])
    parts.node("Concat", [f"{name}.high", f"{name}.low"], [f"{name}.digits"], axis=1)
    matrix, steps = parts.tensor(f"{name}.rows", codes), parts.tensor(f"{name}.scales", scales)
    parts.node("MatMulIntegerToFloat", [f"{name}.digits", matrix, first, steps, zero], [f"{name}.both"], MS)
    parts.node("Split", [f"{name}.both"], [f"{name}.of_high", f"{name}.of_low"], axis=1)
    parts.node("Mul", [f"{name}.of_low", share], [f"{name}.small"])
    return parts.node("Add", [f"{name}.of_high", f"{name}.small"], [name])
