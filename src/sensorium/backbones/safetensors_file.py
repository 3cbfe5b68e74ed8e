"""Reads safetensors files with numpy alone, bfloat16 included, and trusts nothing in them.

Eight bytes give the length of a JSON header, the header each tensor's type, shape and place in the bytes after it
(https://huggingface.co/docs/safetensors). Every number is checked before anything is allocated: a damaged or hostile
file ends in one sentence.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SensoriumError

# Far above any real model (a shard has a few thousand tensors, and its header takes 100 bytes for each).
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 1 << 16
MAX_DIMS = 8

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its storage type, its shape, and its bytes from `start` to `end` of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """An open file: `entries` by name, `load(name)`, `raw(name)`.

    Raises `SensoriumError` for anything that is not a sound safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A named pipe would block for ever, and a device has no size.
            if not path.is_file():
                raise self._error("does not exist or is no regular file; fetch the model again")
            with path.open("rb") as file:
                if file.seek(0, 2) < 8:
                    raise self._error("has fewer than 8 bytes and is no safetensors file; fetch it again")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise SensoriumError(f"The model file {path} cannot be read ({error}); check the path.") from None
        try:
            self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def load(self, name: str) -> NDArray[np.float32]:
        """A tensor of floating-point numbers as a new float32 array."""
        entry = self.entries[name]
        if entry.type not in _FLOATS:
            raise self._error(f"stores {name} as {entry.type}, which is no F32, F16 or BF16; save the model as one")
        values = np.frombuffer(self._map, _FLOATS[entry.type], math.prod(entry.shape), entry.start)
        try:
            if entry.type == "BF16":  # the upper half of a float32
                wide = values.astype(np.uint32)
                wide <<= np.uint32(16)
                return wide.view(np.float32).reshape(entry.shape)
            return values.astype(np.float32).reshape(entry.shape)
        except MemoryError:
            raise self._error(f"needs more memory for {name} than this machine has; choose a smaller model") from None

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes as stored, uint8 [rows, bytes per row]; a view of the mapped file."""
        entry = self.entries[name]
        data = np.frombuffer(self._map, np.uint8, entry.end - entry.start, entry.start)
        return data.reshape(*entry.shape[:-1], -1)

    def digest(self) -> str:
        """Hex sha256 of the whole file as mapped: what is hashed is what is loaded."""
        digest = hashlib.sha256()
        with memoryview(self._map) as view:
            for start in range(0, len(view), 1 << 20):
                with view[start : start + (1 << 20)] as piece:
                    digest.update(piece)
        return digest.hexdigest()

    def close(self) -> None:
        """Unmap the file; arrays that `load` gave stay valid."""
        try:
            self._map.close()
        except BufferError:  # a view is still held; the map goes when that does
            pass

    def _error(self, problem: str) -> SensoriumError:
        return SensoriumError(f"The model file {self.path} {problem}.")

    def _read_header(self) -> dict[str, Entry]:
        (length,) = struct.unpack("<Q", self._map[:8])
        size = len(self._map) - 8
        if length > min(size, MAX_HEADER_BYTES):
            raise self._error(f"claims a header of {length} bytes; it is no safetensors file, or damaged")
        try:
            header = json.loads(self._map[8 : 8 + length], object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            reason = f"it holds {error}" if isinstance(error, _Twice) else "it is no safetensors file, or damaged"
            raise self._error(f"has a header that cannot be read; {reason}") from None
        if not isinstance(header, dict) or len(header) > MAX_TENSORS:
            raise self._error("has a header that is no list of tensors; it is damaged")
        header.pop("__metadata__", None)
        start = 8 + length
        entries = {name: self._entry(name, fields, start, size - length) for name, fields in header.items()}
        end, last = start, ""
        for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
            if entry.start < end:
                raise self._error(f"lets the tensors {last!r} and {entry.name!r} overlap; it is damaged")
            end, last = entry.end, entry.name
        return entries

    def _entry(self, name: str, fields: Any, start: int, room: int) -> Entry:
        fields = fields if isinstance(fields, dict) else {}
        kind, shape, place = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if kind not in _BYTES:
            raise self._error(f"stores the tensor {name[:200]!r} in the unknown type {str(kind)[:40]!r}")
        if not _counts(shape) or len(shape) > MAX_DIMS or not _counts(place) or len(place) != 2:
            raise self._error(f"describes the tensor {name[:200]!r} senselessly; it is damaged")
        nbytes = math.prod(shape) * _BYTES[kind]
        if place[1] - place[0] != nbytes:
            raise self._error(f"gives {place[1] - place[0]} bytes to the tensor {name[:200]!r}, which takes {nbytes}")
        if place[1] > room:
            raise self._error(f"ends before its tensor {name[:200]!r}; it is cut off, fetch it again")
        return Entry(name, kind, tuple(shape), start + place[0], start + place[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 60 for n in value)


class _Twice(ValueError):
    """A key that stands twice in a JSON object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"the key {twice[:80]!r} twice")
    return found
