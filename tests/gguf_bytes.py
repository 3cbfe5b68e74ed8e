"""Writes GGUF files field by field, so that a test can make any one of them wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: object) -> bytes:
    return text(value) if kind == STRING else struct.pack("<" + _CODES[kind], value)  # type: ignore[arg-type]


def entry(key: str | bytes, kind: int, value: object) -> bytes:
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def array(key: str, kind: int, values: Iterable[object], count: int | None = None) -> bytes:
    items = list(values)
    head = struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count)
    return text(key) + head + b"".join(scalar(kind, item) for item in items)


def tensor(name: str | bytes, dims: Iterable[int], code: int, offset: int) -> bytes:
    """`dims` in GGUF order: the fastest-varying first."""
    sizes = list(dims)
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, code, offset)


def header(entries: list[bytes], tensors: list[bytes] = [], version: int = 3) -> bytes:  # noqa: B006
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    return head + b"".join(entries) + b"".join(tensors)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + b"\0" * (-len(data) % alignment)


def model(arch: str, shapes: dict[str, tuple[int, ...]], fields: list[bytes], seed: int = 0) -> bytes:
    """A file with random float32 tensors; `shapes` in numpy order."""
    random, table, body = np.random.default_rng(seed), [], b""
    for name, shape in shapes.items():
        table.append(tensor(name, shape[::-1], 0, len(body)))
        body += padded(random.normal(size=shape).astype("<f4").tobytes())
    return padded(header([entry("general.architecture", STRING, arch), *fields], table)) + body
