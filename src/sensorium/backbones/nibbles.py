"""Four-bit GGUF weights as they are: neither rounded a second time nor widened to eight bits.

A block of Q4_0 or Q4_1 is `step * q + offset` with q in 0..15, and `MatMulNBits` computes `step * (q - zero)` with a
whole zero point. What is left over, `rest = offset + step * zero`, is one number for 32 inputs: it adds `rest` times
the sum of these inputs. So the input is widened by the mean of each of its blocks, and the matrix by columns that hold
`32 * rest`, in four bits like the others. That rounds `rest`, which is mostly below half a step, to within a thirtieth
of a step.

Decoding reads every weight for every token and is bound by memory: half the bytes are worth far more than the two small
operators that widen the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.quantize import BLOCK, half, unpacked

TYPES = ("Q4_0", "Q4_1")
"""GGUF types of this form."""
_LEVELS = 15

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Nibbles:
    """A matrix [rows, columns] in blocks of consecutive columns: `scale * (code - zero) + rest`.

    Codes and zero points are whole numbers of 0..15: uint8 [rows, blocks, block] and [rows, blocks]; `scales` and
    `rest` are float32 [rows, blocks]. Where columns do not fill the last block, it is padded with zero points.
    """

    codes: Bytes
    scales: Floats
    zeros: Bytes
    rest: Floats
    columns: int

    @property
    def rows(self) -> int:
        """Number of rows (outputs)."""
        return len(self.codes)

    @property
    def block(self) -> int:
        """Columns of a block."""
        return self.codes.shape[2]

    def dequantize(self) -> Floats:
        """The matrix that is stood for, float32 [rows, columns]."""
        values = self.codes.astype(np.float32)
        values -= self.zeros[..., None]
        values *= self.scales[..., None]
        values += self.rest[..., None]
        return values.reshape(self.rows, -1)[:, : self.columns]


def read(raw: Bytes, kind: str, columns: int) -> Nibbles | None:
    """A matrix from packed GGUF rows [rows, bytes], or None where the type is not of this form."""
    if kind not in TYPES or columns % BLOCK:
        return None
    blocks = raw.reshape(len(raw), columns // BLOCK, -1)
    scales = half(blocks, 0)
    if kind == "Q4_0":
        eight = np.full(scales.shape, 8, np.uint8)
        return Nibbles(unpacked(blocks[..., 2:]), scales, eight, np.zeros_like(scales), columns)
    offset = half(blocks, 2)
    zeros = np.divide(-offset, scales, out=np.zeros_like(scales), where=scales != 0)
    zeros = np.clip(np.rint(zeros), 0, _LEVELS)
    return Nibbles(unpacked(blocks[..., 4:]), scales, zeros.astype(np.uint8), offset + scales * zeros, columns)


def quantize(weight: Floats, block: int = BLOCK, *, symmetric: bool = False) -> Nibbles:
    """Round a float matrix [rows, columns] to nearest, at most a step of (max - min) / 15 away; 0 stays 0.

    With `symmetric`, the range of a block reaches as far below 0 as above.
    """
    rows, columns = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -columns % block))).reshape(rows, -1, block)
    low = np.minimum(blocks.min(axis=-1), 0)
    high = np.maximum(blocks.max(axis=-1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scales = (high - low) / np.float32(_LEVELS)
    scales[scales == 0] = 1
    zeros = np.rint(-low / scales)
    codes = blocks / scales[..., None]
    codes += zeros[..., None]
    np.clip(np.rint(codes, out=codes), 0, _LEVELS, out=codes)
    return Nibbles(codes.astype(np.uint8), scales, zeros.astype(np.uint8), np.zeros_like(scales), columns)


def repeated(weight: Floats, copies: int) -> Nibbles:
    """A float matrix [rows, columns] as [rows, copies * columns], for an input that is repeated `copies` times.

    The sum of a weight's copies stands for it, rounded to nearest in `copies` times as many steps: two copies are worth
    five bits. With more than one, they fill a block: `copies * columns` is 32.
    """
    if copies == 1:
        return quantize(weight, symmetric=True)
    middle = 8
    highest = (_LEVELS - middle) * copies
    steps = np.abs(weight).max(axis=1, keepdims=True) / np.float32(highest + 0.5)
    steps[steps == 0] = 1
    sums = np.clip(np.rint(weight / steps), -middle * copies, highest).astype(np.int32)
    # For whole s, the floors of (s + k) / n over k = 0..n-1 sum to s, and none differs from another by more than 1.
    codes = np.concatenate([(sums + k) // copies for k in range(copies)], axis=1) + middle
    zeros = np.full(steps.shape, middle, np.uint8)
    return Nibbles(codes.astype(np.uint8)[:, None], steps, zeros, np.zeros_like(steps), codes.shape[1])


def stack(parts: Sequence[Nibbles]) -> Nibbles:
    """Matrices with the same columns, one below the other."""
    return _joined(parts, 0, parts[0].columns)


def beside(left: Nibbles, right: Nibbles) -> Nibbles:
    """Matrices with the same rows, side by side; the right one begins a new block."""
    return _joined([left, right], 1, left.codes.shape[1] * left.block + right.columns)


def _joined(parts: Sequence[Nibbles], axis: int, columns: int) -> Nibbles:
    names = ("codes", "scales", "zeros", "rest")
    codes, scales, zeros, rest = (np.concatenate([getattr(part, name) for part in parts], axis) for name in names)
    return Nibbles(codes, scales, zeros, rest, columns)


def packed(values: Bytes) -> Bytes:
    """Pairs of four-bit numbers along the last axis, the first in the low half of a byte; an odd one is padded with
    0."""
    values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
    return np.bitwise_or(values[..., ::2], values[..., 1::2] << np.uint8(4), dtype=np.uint8)
