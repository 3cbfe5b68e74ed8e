"""Reads GGUF model files (versions 2 and 3) with numpy alone: metadata, tensor table, dequantised tensors.

The file is untrusted: every count, length, offset and size is checked against the file and against fixed limits before
anything is allocated, so that a damaged or hostile file ends in one sentence.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sensorium.backbones.quants import TYPES, QuantType, dequantize
from sensorium.backbones.spec import BackboneSpec, spec_from_gguf
from sensorium.errors import SensoriumError

__all__ = ["GGUF", "BackboneSpec", "TensorInfo", "spec_from_gguf"]

# Limits far above any real model (the largest vocabularies have 300,000 tokens and 600,000 merges, the largest models a
# few thousand tensors) and low enough that a hostile header costs neither minutes nor gigabytes.
MAX_HEADER_BYTES = 64 << 20
MAX_ENTRIES = 1 << 16
MAX_STRINGS = 1 << 21
MAX_NAME_BYTES = 4096
MAX_DIMS = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in the file; `shape` is in numpy (row-major) order, `offset` in bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    kind: QuantType


class GGUF:
    """An open GGUF file: `metadata`, `tensors`, and `load(name)`.

    `metadata` maps each key to a Python scalar, a str, a list of str, or (arrays of numbers) a numpy array.
    Arrays that `load` and `raw` return are copies, valid after `close`. Usable as a context manager.
    Raises `SensoriumError` for anything that is not a sound GGUF file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._fingerprint: str | None = None
        try:
            # A named pipe would block for ever, and a device has no size.
            if self.path.exists() and not self.path.is_file():
                raise self._error("is not a regular file; give the path of a .gguf file")
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 24:
                    raise self._error(f"has only {size} bytes and is no GGUF file; fetch it again")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise SensoriumError(f"The model file {self.path} cannot be read ({error}); check the path.") from error
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    # -- public -------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """How a sentence about this file begins."""
        return f"The model file {self.path}"

    def own_name(self, name: str) -> str:
        """The name of a tensor in the file: the same."""
        return name

    def load(self, name: str) -> np.ndarray:
        """The tensor as a new float32 array in numpy order (`tensors[name].shape`), dequantised."""
        info = self._info(name)
        if not info.kind.readable:
            raise self._error(f"stores {name} as {info.type}, which cannot be decoded here; use a Q8_0 or Q4_K file")
        raw = np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        try:
            return dequantize(raw, info.kind).reshape(info.shape)
        except MemoryError:
            raise self._error(f"needs more memory for {name} than this machine has; choose a smaller model") from None

    def raw(self, name: str) -> np.ndarray:
        """The tensor's packed bytes as a new uint8 array [..., bytes per row] (for repacking without loss)."""
        info = self._info(name)
        rows = info.shape[:-1]
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset).reshape(*rows, -1).copy()

    @property
    def fingerprint(self) -> str:
        """sha256 of the whole file, in hexadecimal; computed once, in streaming fashion (0.1-0.3 s per 100 MB)."""
        if self._fingerprint is None:
            self._check_open()
            digest = hashlib.sha256()
            # The mapped bytes, not the path again: what is hashed is what is loaded.
            with memoryview(self._map) as view:
                for start in range(0, len(view), 1 << 20):
                    with view[start : start + (1 << 20)] as piece:
                        digest.update(piece)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def close(self) -> None:
        """Unmaps the file; arrays already loaded stay valid, further loads fail."""
        try:
            self._map.close()
        except BufferError:
            # A traceback still holds an array over the map; the map goes when that does.
            pass

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- reading the header -------------------------------------------------------------------------------------

    def _error(self, problem: str) -> SensoriumError:
        return SensoriumError(f"{self.label} {problem}.")

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise self._error(f"has no tensor {name!r}; it is no model of the expected architecture")
        self._check_open()
        return self.tensors[name]

    def _check_open(self) -> None:
        if self._map.closed:
            raise self._error("is closed already; open it again")

    def _read_header(self) -> None:
        self._limit = min(len(self._map), MAX_HEADER_BYTES)
        self._strings_left = MAX_STRINGS
        magic, version = self._map[:4], struct.unpack_from("<I", self._map, 4)[0]
        if magic != b"GGUF":
            raise self._error(f"does not start with GGUF but with {magic!r}; give a .gguf file")
        if version and not version & 0xFFFF:
            raise self._error("is a big-endian GGUF file; convert it to little-endian")
        if version not in (2, 3):
            raise self._error(f"is GGUF version {version}, and only 2 and 3 can be read; convert it again")
        tensor_count, entry_count = struct.unpack_from("<QQ", self._map, 8)
        if tensor_count > MAX_ENTRIES or entry_count > MAX_ENTRIES:
            raise self._error(f"claims {tensor_count} tensors and {entry_count} metadata entries; it is damaged")
        self._at = 24
        self.metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._name("metadata key")
            if key in self.metadata:
                raise self._error(f"holds the metadata key {key!r} twice; it is damaged")
            self.metadata[key] = self._value(self._number("<I"))
        split = self.metadata.get("split.count")
        if isinstance(split, int) and split > 1:
            raise self._error("is one piece of a split model; merge the pieces with llama-gguf-split first")
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._error(f"gives {alignment!r} as its alignment, which is no power of two; it is damaged")
        table = [self._tensor_entry() for _ in range(tensor_count)]
        start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in table:
            if name in self.tensors:
                raise self._error(f"holds the tensor {name!r} twice; it is damaged")
            if offset % alignment:
                raise self._error(f"puts the tensor {name!r} at an offset that is not aligned; it is damaged")
            nbytes = math.prod(shape) // kind.block * kind.size
            if start + offset + nbytes > len(self._map):
                raise self._error(f"ends before its tensor {name!r}; it is cut off, fetch it again")
            self.tensors[name] = TensorInfo(name, shape, kind.name, start + offset, nbytes, kind)
        end, last = 0, ""
        for info in sorted(self.tensors.values(), key=lambda info: info.offset):
            if info.offset < end:
                raise self._error(f"lets the tensors {last!r} and {info.name!r} overlap; it is damaged")
            end, last = info.offset + info.nbytes, info.name

    def _take(self, count: int) -> int:
        """Moves past `count` bytes of the header and returns where they start."""
        start = self._at
        if count > self._limit - start:
            raise self._error("ends inside its header, or the header is damaged; fetch it again")
        self._at = start + count
        return start

    def _number(self, code: str) -> Any:
        return struct.unpack_from(code, self._map, self._take(struct.calcsize(code)))[0]

    def _text(self) -> str:
        # Values are replaced, not refused, when they are no UTF-8: llama.cpp reads such files too.
        length = self._number("<Q")
        start = self._take(length)
        return self._map[start : start + length].decode("utf-8", "replace")

    def _name(self, what: str) -> str:
        length = self._number("<Q")
        if length > MAX_NAME_BYTES:
            raise self._error(f"has a {what} of {length} bytes; it is damaged")
        start = self._take(length)
        try:
            return self._map[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"has a {what} that is not UTF-8; it is damaged") from None

    def _value(self, code: int) -> Any:
        if code in _SCALARS:
            return self._number(_SCALARS[code])
        if code == _BOOL:
            return self._number("<B") != 0
        if code == _STRING:
            return self._text()
        if code == _ARRAY:
            return self._array()
        raise self._error(f"has a metadata value of the unknown type {code}; it is damaged or too new")

    def _array(self) -> Any:
        code, count = self._number("<I"), self._number("<Q")
        if code in _SCALARS or code == _BOOL:
            dtype = np.dtype("?" if code == _BOOL else _SCALARS[code])
            start = self._take(count * dtype.itemsize)
            values = np.frombuffer(self._map, "u1" if code == _BOOL else dtype, count, start)
            return values != 0 if code == _BOOL else values.copy()
        if code == _STRING:
            return self._texts(count)
        # Arrays of arrays are legal on paper; no model has them and llama.cpp does not read them either.
        raise self._error(f"has a metadata array of the type {code}, which is unknown or nested; it is damaged")

    def _texts(self, count: int) -> list[str]:
        # A vocabulary has 50,000-300,000 strings: this loop is the header's cost, so it repeats `_text` inline.
        if count > self._strings_left:
            raise self._error(f"claims a list of {count} strings; it is damaged")
        self._strings_left -= count
        view, at, limit, texts = self._map, self._at, self._limit, []
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            if start > limit or (at := start + unpack(view, at)[0]) > limit:
                raise self._error("ends inside its header, or the header is damaged; fetch it again")
            texts.append(view[start:at].decode("utf-8", "replace"))
        self._at = at
        return texts

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], QuantType, int]:
        name = self._name("tensor name")
        dims = self._number("<I")
        if dims > MAX_DIMS:
            raise self._error(f"gives the tensor {name!r} {dims} dimensions; it is damaged")
        shape = tuple(self._number("<Q") for _ in range(dims))
        kind = TYPES.get(code := self._number("<I"))
        if kind is None:
            raise self._error(f"stores the tensor {name!r} in the unknown type {code}; it is damaged or too new")
        if 0 in shape or math.prod(shape[:1]) % kind.block:
            raise self._error(f"gives the {kind.name} tensor {name!r} the impossible shape {shape}; it is damaged")
        return name, shape[::-1], kind, self._number("<Q")
