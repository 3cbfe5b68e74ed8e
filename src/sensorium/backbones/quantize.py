"""Eight-bit block quantisation of weights for ONNX Runtime's `MatMulNBits`, with numpy alone.

A weight matrix [out, in] becomes blocks of 32 consecutive inputs: `value = scale * (code - zero)`, code and zero uint8.
GGUF types that are themselves such blocks with fewer levels (Q4_0, Q4_1, Q8_0) are re-coded rather than rounded a
second time: Q8_0 and Q4_0 exactly; Q4_1 to within 0.03 of its own step (0.004 on average), because its real-valued
offset has to become a whole zero point. Everything else is rounded to nearest within the block's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32

_Q4_1_STEPS = 15
_CODES = 255


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix [rows, columns]: `codes` uint8 [rows, blocks, 32], `scales` float32 and `zeros` uint8
    [rows, blocks]. The last block is padded with zero points, which stand for 0."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    columns: int

    @property
    def rows(self) -> int:
        """Number of rows (outputs)."""
        return len(self.codes)

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix that the codes stand for, float32 [rows, columns]."""
        values = self.codes.astype(np.float32)
        values -= self.zeros[..., None]
        values *= self.scales[..., None]
        return values.reshape(self.rows, -1)[:, : self.columns]


def stack(parts: Sequence[Blocks]) -> Blocks:
    """Matrices with the same inputs, one below the other."""
    if len(parts) == 1:
        return parts[0]
    return Blocks(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        parts[0].columns,
    )


def quantize(weight: NDArray[np.float32]) -> Blocks:
    """Round a float matrix [rows, columns] to nearest; the error is at most half a step of (max - min) / 255."""
    rows, columns = weight.shape
    padded = -(-columns // BLOCK) * BLOCK
    if padded != columns:
        weight = np.pad(weight, ((0, 0), (0, padded - columns)))
    blocks = weight.reshape(rows, -1, BLOCK)
    # The range always holds 0, so that 0 is exact and the zero point fits into eight bits.
    low = np.minimum(blocks.min(axis=-1), 0)
    scales = (np.maximum(blocks.max(axis=-1), 0) - low) / np.float32(_CODES)
    scales[scales == 0] = 1
    zeros = np.rint(-low / scales)
    codes = blocks / scales[..., None]
    codes += zeros[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, _CODES, out=codes)
    return Blocks(codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8), columns)


def recode(raw: NDArray[np.uint8], kind: str, columns: int) -> Blocks | None:
    """Blocks from packed GGUF rows [rows, bytes] without a second rounding, or None where the type has no such form."""
    known = {"Q8_0": _from_q8_0, "Q4_0": _from_q4_0, "Q4_1": _from_q4_1}
    if kind not in known or columns % BLOCK:
        return None
    codes, scales, zeros = known[kind](raw.reshape(len(raw), columns // BLOCK, -1))
    return Blocks(codes, scales, zeros, columns)


_Parts = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]


def _from_q8_0(blocks: NDArray[np.uint8]) -> _Parts:
    # Flipping the sign bit adds 128 to a two's complement byte.
    codes = blocks[..., 2:] ^ np.uint8(128)
    scales = half(blocks, 0)
    return codes, scales, np.full(scales.shape, 128, np.uint8)


def _from_q4_0(blocks: NDArray[np.uint8]) -> _Parts:
    scales = half(blocks, 0)
    return unpacked(blocks[..., 2:]), scales, np.full(scales.shape, 8, np.uint8)


def _from_q4_1(blocks: NDArray[np.uint8]) -> _Parts:
    """`step * q + offset`, q in 0..15, becomes `(step / k) * (k * q - zero)`: with k free in 1..17 there is nearly
    always a k for which `-offset * k / step` is close to a whole number, so the offset hardly moves."""
    step, offset, q = half(blocks, 0), half(blocks, 2), unpacked(blocks[..., 4:])
    flat = step == 0
    ratio = np.divide(-offset, step, out=np.zeros_like(step), where=~flat)
    best = np.full(step.shape, np.inf, np.float32)
    factor, zeros = np.ones_like(best), np.zeros_like(best)
    for k in range(_CODES // _Q4_1_STEPS, 0, -1):
        zero = np.rint(ratio * k)
        error = np.abs(ratio - zero / k)
        error[(zero < 0) | (zero > _CODES)] = np.inf
        better = error < best
        best[better], factor[better], zeros[better] = error[better], k, zero[better]
    codes = q * factor.astype(np.uint8)[..., None]
    scales = step / factor
    odd = flat | ~np.isfinite(best)
    if odd.any():
        # Constant blocks, and blocks so far from 0 that no zero point reaches them: round these to nearest.
        values = step[odd][:, None] * q[odd] + offset[odd][:, None]
        rounded = quantize(values)
        codes[odd], scales[odd], zeros[odd] = rounded.codes[:, 0], rounded.scales[:, 0], rounded.zeros[:, 0]
    return codes, scales, zeros.astype(np.uint8)


def half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """The half-precision numbers at byte `at` of each block [..., bytes], as float32 [...]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def unpacked(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """16 bytes -> 32 values: the low nibbles first, then the high ones (ggml's order)."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)
