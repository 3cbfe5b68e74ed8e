"""GGML block formats: their sizes, and vectorised dequantisation to float32 with numpy alone.

A quantised tensor is a run of fixed-size blocks along its last axis; each block holds some scales and packed small
integers. Layouts follow `ggml-common.h` of llama.cpp (MIT); the results are bit-identical to `ggml-quants.c` as
reproduced by the `gguf` package, which the tests compare against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SensoriumError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantType:
    """One GGML storage type: `block` consecutive values take `size` bytes."""

    code: int
    name: str
    block: int
    size: int

    @property
    def readable(self) -> bool:
        """Whether `dequantize` knows the type (a file may hold others; they are sized but not decoded)."""
        return self.name in _KERNELS


# The struct of each block as a numpy record, in the order of the fields on disk (ggml-common.h).
_RECORDS: dict[str, np.dtype] = {
    "Q4_0": np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    "Q4_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    "Q5_0": np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    "Q5_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    "Q8_0": np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    "Q2_K": np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("m", "<f2")]),
    "Q3_K": np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    "Q4_K": np.dtype([("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    "Q5_K": np.dtype([("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]),
    "Q6_K": np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
    "IQ4_NL": np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    "IQ4_XS": np.dtype([("d", "<f2"), ("high", "<u2"), ("low", "u1", 4), ("qs", "u1", 128)]),
}


def _q4_0(b: np.ndarray, out: Floats) -> None:
    _nibbles(b["qs"], out, 16)
    out -= np.float32(8)
    out *= _column(b["d"])


def _q4_1(b: np.ndarray, out: Floats) -> None:
    _nibbles(b["qs"], out, 16)
    out *= _column(b["d"])
    out += _column(b["m"])


def _q5_0(b: np.ndarray, out: Floats) -> None:
    out[:] = _five_bits(b)
    out -= np.float32(16)
    out *= _column(b["d"])


def _q5_1(b: np.ndarray, out: Floats) -> None:
    out[:] = _five_bits(b)
    out *= _column(b["d"])
    out += _column(b["m"])


def _q8_0(b: np.ndarray, out: Floats) -> None:
    out[:] = b["qs"]
    out *= _column(b["d"])


def _q2_k(b: np.ndarray, out: Floats) -> None:
    scale = _column(b["d"]) * (b["scales"] & 15)
    low = _column(b["m"]) * (b["scales"] >> 4)
    _two_bits(b["qs"], out)
    _scale_groups(out, scale, low)


def _q3_k(b: np.ndarray, out: Floats) -> None:
    # 16 six-bit scales: bytes 0-7 hold the low nibbles, bytes 8-11 two high bits of four scales each.
    low, high = b["scales"][:, :8], b["scales"][:, 8:]
    scales = np.concatenate([low & 15, low >> 4], axis=1)
    scales |= np.concatenate([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=1)
    _two_bits(b["qs"], out)
    # A set mask bit means "no offset"; a clear one subtracts 4.
    offset = (~_bit_planes(b["hmask"]) & 1) << 2
    out -= offset.reshape(out.shape)
    _scale_groups(out, _column(b["d"]) * (scales.astype(np.int8) - np.int8(32)), None)


def _q4_k(b: np.ndarray, out: Floats) -> None:
    scale, low = _k_scales(b)
    _nibbles(b["qs"], out, 32)
    _scale_groups(out, scale, low)


def _q5_k(b: np.ndarray, out: Floats) -> None:
    scale, low = _k_scales(b)
    _nibbles(b["qs"], out, 32)
    out += ((_bit_planes(b["qh"]) & 1) << 4).reshape(out.shape)
    _scale_groups(out, scale, low)


def _q6_k(b: np.ndarray, out: Floats) -> None:
    _nibbles(b["ql"], out, 64)
    high = b["qh"].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    out += ((high & 3) << 4).reshape(out.shape)
    out -= np.float32(32)
    _scale_groups(out, _column(b["d"]) * b["scales"], None)


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _iq4_nl(b: np.ndarray, out: Floats) -> None:
    out[:, :16] = _IQ4[b["qs"] & 15]
    out[:, 16:] = _IQ4[b["qs"] >> 4]
    out *= _column(b["d"])


def _iq4_xs(b: np.ndarray, out: Floats) -> None:
    low = np.stack([b["low"] & 15, b["low"] >> 4], axis=2).reshape(-1, 8)
    high = (b["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    scale = _column(b["d"]) * ((low | high << 4).astype(np.int8) - np.int8(32))
    groups, qs = out.reshape(-1, 8, 2, 16), b["qs"].reshape(-1, 8, 16)
    groups[:, :, 0] = _IQ4[qs & 15]
    groups[:, :, 1] = _IQ4[qs >> 4]
    _scale_groups(out, scale, None)


def _column(scale: np.ndarray) -> Floats:
    """float16 [n] -> float32 [n, 1]."""
    return scale.astype(np.float32)[:, None]


def _nibbles(qs: Bytes, out: Floats, half: int) -> None:
    """Packed bytes [n, k * half] -> `out` [n, k * 2 * half]: the low nibbles of `half` bytes, then their high ones."""
    pairs, packed = out.reshape(len(out), -1, 2, half), qs.reshape(len(out), -1, half)
    pairs[:, :, 0] = packed & 15
    pairs[:, :, 1] = packed >> 4


def _two_bits(qs: Bytes, out: Floats) -> None:
    """Packed bytes [n, 64] -> `out` [n, 256]: each run of 32 bytes holds four planes of 32 two-bit values."""
    planes, packed = out.reshape(-1, 2, 4, 32), qs.reshape(-1, 2, 32)
    for plane in range(4):
        planes[:, :, plane] = packed >> (2 * plane) & 3


def _bit_planes(mask: Bytes) -> Bytes:
    """Bytes [n, 32] -> [n, 8, 32]: plane i is the mask shifted right by i (mask the lowest bit after)."""
    return mask[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]


def _five_bits(b: np.ndarray) -> Bytes:
    """Low four bits from the nibbles of `qs`, the fifth from the 32-bit little-endian mask `qh`: uint8 [n, 32]."""
    low = np.concatenate([b["qs"] & 15, b["qs"] >> 4], axis=1)
    return low | np.unpackbits(b["qh"], axis=1, bitorder="little") << 4


def _k_scales(b: np.ndarray) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minima of Q4_K and Q5_K, packed in 12 bytes, times the block's two float16 scales."""
    first, second, mixed = b["scales"][:, :4], b["scales"][:, 4:8], b["scales"][:, 8:]
    scale = np.concatenate([first & 63, mixed & 15 | first >> 2 & 48], axis=1)
    low = np.concatenate([second & 63, mixed >> 4 | second >> 2 & 48], axis=1)
    return _column(b["d"]) * scale, _column(b["m"]) * low


def _scale_groups(out: Floats, scale: Floats, low: Floats | None) -> None:
    """out [n, 256] viewed as groups: out = out * scale[n, groups] - low[n, groups], in place."""
    groups = out.reshape(*scale.shape, -1)
    groups *= scale[:, :, None]
    if low is not None:
        groups -= low[:, :, None]


_KERNELS: dict[str, Callable[[np.ndarray, Floats], None] | None] = {
    **dict.fromkeys(["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"]),
    **{"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k},
    **{"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs},
}
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

# (code, name, values per block, bytes per block) of every type that a current file may hold (ggml.h, ggml-common.h).
TYPES: dict[int, QuantType] = {
    code: QuantType(code, name, block, size)
    for code, name, block, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36),
    )
}  # fmt: skip
BY_NAME: dict[str, QuantType] = {kind.name: kind for kind in TYPES.values()}

# Values decoded at a time: the working set (packed bytes, float32 output, temporaries) stays in the L2 cache.
_CHUNK = 1 << 17


def dequantize(raw: Bytes, kind: QuantType) -> Floats:
    """Decodes whole blocks: uint8 [n * kind.size] -> a new float32 [n * kind.block].

    Raises `SensoriumError` when the type has no decoder here or `raw` does not hold whole blocks.
    """
    if not kind.readable:
        names = ", ".join(sorted(_KERNELS))
        raise SensoriumError(
            f"The tensor type {kind.name} cannot be decoded; convert the file to one of {names} with llama-quantize."
        )
    if raw.size % kind.size:
        raise SensoriumError(
            f"{raw.size} bytes were given as {kind.name}, whose blocks have {kind.size} bytes; the data is cut off."
        )
    if kind.name == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind.name in _PLAIN:
        return raw.view(_PLAIN[kind.name]).astype(np.float32)
    kernel, blocks = _KERNELS[kind.name], raw.view(_RECORDS[kind.name])
    assert kernel is not None
    out = np.empty((len(blocks), kind.block), np.float32)
    step = _CHUNK // kind.block
    # Scales of a damaged file may be infinite or NaN; that is the weights' own content, not worth a warning per chunk.
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            kernel(blocks[start : start + step], out[start : start + step])
    return out.reshape(-1)
