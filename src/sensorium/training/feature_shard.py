"""A shard of the feature cache: one safetensors file that never changes, holds its own index and can be mapped.

Tensors, in the order of the file (`safetensors` reads it too): ``ends`` int64 [rows] where each row's cells end,
``keys`` uint8 [rows, 32], ``crc`` uint32 [rows] over a row's key, scales and values, ``scales`` float32 [cells] (int8
alone), and ``values`` float16 or int8 [cells, dim].

A row as int8 has one scale a cell, its largest magnitude / 127: no value is off by more than 1/254 of the largest of
its cell. (A scale a channel would depend on which pictures share a shard.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sensorium import hub
from sensorium.errors import SensoriumError

VERSION = 1  # raise when the layout, or what the media door makes of bytes, changes
SUFFIX = ".safetensors"
DTYPES: dict[str, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "int8": np.dtype("i1")}
_NAMES = {"<f2": "F16", "|i1": "I8", "<f4": "F32", "<i8": "I64", "<u4": "U32", "|u1": "U8"}
_LONGEST_HEADER = 1 << 16


class Damaged(Exception):
    """A shard is not what was written; the text says how."""


@dataclass(frozen=True)
class Space:
    """What the rows of a shard have in common: with the sha256 of a medium it makes up the key of a row.

    Attributes:
        encoder: the fingerprint of the frozen encoder.
        preprocessing: what stands before it: kind, resolution, options.
        dtype: "fp16" or "int8".
        dim: width of a feature vector.
        cells: vectors a medium, or None where that depends on the medium.
    """

    encoder: str
    dim: int
    cells: int | None
    dtype: str = "fp16"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All of it as JSON, as every shard repeats it."""
        return json.dumps(
            {
                "version": VERSION, "encoder": self.encoder, "preprocessing": dict(self.preprocessing),
                "dtype": self.dtype, "dim": self.dim, "cells": self.cells,
            },
            sort_keys=True,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Of its directory: a digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:24]

    def bytes_of(self, cells: int) -> int:
        """Bytes of a row of so many cells, with its share of the index."""
        return cells * (self.dim * DTYPES[self.dtype].itemsize + (4 if self.dtype == "int8" else 0)) + 44

    def pack(self, features: np.ndarray) -> Row:
        """One medium's features [cells, dim] as they are stored.

        Raises:
            SensoriumError: the shape does not fit, or a value is not finite or too large for half precision.
        """
        features = np.asarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.dim or self.cells not in (None, len(features)):
            raise SensoriumError(
                f"Features {list(features.shape)} do not fit a cache of {[self.cells or 'any', self.dim]}; "
                "use the encoder that the cache was opened for."
            )
        largest = np.abs(features).max(axis=1, initial=0.0)
        if not np.isfinite(largest).all():
            raise SensoriumError("The encoder gives values that are not finite, so its features cannot be kept.")
        if self.dtype == "int8":
            scales = (largest / np.float32(127)).astype("<f4")
            scales[scales == 0] = 1  # a cell of zeros (or of numbers too small for a scale)
            return Row(np.rint(features / scales[:, None]).astype("i1"), scales)
        if largest.size and largest.max() > 65504:
            raise SensoriumError("The encoder gives values beyond half precision; keep its features as int8.")
        return Row(features.astype("<f2"), None)


@dataclass(frozen=True, eq=False)
class Row:
    """One medium's features as stored: values [cells, dim], and for int8 the scales [cells]."""

    values: np.ndarray
    scales: np.ndarray | None

    def features(self) -> np.ndarray:
        """[cells, dim]: float16 as it stands (a view of the file), or float32 from int8."""
        if self.scales is None:
            return self.values
        return self.values * self.scales[:, None]

    def crc(self, key: bytes) -> int:
        """Check sum of all that makes up the row."""
        crc = zlib.crc32(key)
        if self.scales is not None:
            crc = zlib.crc32(np.ascontiguousarray(self.scales).data, crc)
        return zlib.crc32(np.ascontiguousarray(self.values).data, crc)


def shard_name(keys: Sequence[bytes]) -> str:
    """The file name of the shard that holds these rows."""
    return hashlib.sha256(b"".join(keys)).hexdigest()[:24] + SUFFIX


def write_shard(path: Path, space: Space, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
    """Write a shard; it appears whole or not at all. The bytes follow from the arguments alone."""
    ends = np.cumsum([len(row.values) for row in rows], dtype="<i8")
    head = _header(space, len(rows), int(ends[-1]))
    with hub.atomic_write(path) as file:
        file.write(head)
        file.write(ends.tobytes())
        file.write(b"".join(keys))
        file.write(np.array([row.crc(key) for key, row in zip(keys, rows)], "<u4").tobytes())
        for row in rows:
            if row.scales is not None:
                file.write(row.scales.tobytes())
        for row in rows:
            file.write(np.ascontiguousarray(row.values).data)


class Shard:
    """A shard, mapped.

    Attributes:
        path: the file.
        keys: of its rows, sha256 of the media.

    Raises:
        Damaged: the file is not a shard of the space, or not whole.
        FileNotFoundError: it is gone.
    """

    def __init__(self, path: Path, space: Space) -> None:
        self.path = path
        try:
            raw = np.memmap(path, np.uint8, mode="r")
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise Damaged(str(error)) from None
        count, cells = _shape(raw)
        head = _header(space, count, cells)
        if bytes(raw[: len(head)]) != head:
            raise Damaged("its header is another's")
        tensors, at = {}, len(head)
        for name, dtype, shape in _layout(space, count, cells):
            size = dtype.itemsize * math.prod(shape)
            tensors[name] = raw[at : at + size].view(dtype).reshape(shape)
            at += size
        self._ends, self._crc = np.array(tensors["ends"]), np.array(tensors["crc"])
        if not (np.diff(self._ends, prepend=0) >= 0).all() or self._ends[-1] != cells:
            raise Damaged("its index does not fit its values")
        self.keys = [bytes(key) for key in tensors["keys"]]
        if shard_name(self.keys) != path.name:
            raise Damaged("its keys do not fit its name")
        self._values, self._scales = tensors["values"], tensors.get("scales")
        self._checked = np.zeros(count, bool)

    def row(self, index: int) -> Row:
        """A row, compared with its check sum when it is read first. Raises Damaged."""
        start, end = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        row = Row(self._values[start:end], None if self._scales is None else self._scales[start:end])
        if not self._checked[index]:
            if row.crc(self.keys[index]) != self._crc[index]:
                raise Damaged("a check sum does not fit")
            self._checked[index] = True
        return row


def _layout(space: Space, count: int, cells: int) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    yield "ends", np.dtype("<i8"), (count,)
    yield "keys", np.dtype("u1"), (count, 32)
    yield "crc", np.dtype("<u4"), (count,)
    if space.dtype == "int8":
        yield "scales", np.dtype("<f4"), (cells,)
    yield "values", DTYPES[space.dtype], (cells, space.dim)


def _header(space: Space, count: int, cells: int) -> bytes:
    """The beginning of a shard: a reader compares it byte for byte, so that nothing in a file is believed."""
    header: dict[str, Any] = {"__metadata__": {"format": "sensorium features", "space": space.text}}
    at = 0
    for name, dtype, shape in _layout(space, count, cells):
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype.str], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _shape(raw: np.ndarray) -> tuple[int, int]:
    """(rows, cells) that a file claims to have, once its size fits them. Raises Damaged."""
    length = int.from_bytes(bytes(raw[:8]), "little")
    if not 0 < length <= min(_LONGEST_HEADER, len(raw) - 8):
        raise Damaged("it is cut off or no shard")
    try:
        header = json.loads(bytes(raw[8 : 8 + length]))
        count, cells = header["keys"]["shape"][0], header["values"]["shape"][0]
        end = header["values"]["data_offsets"][1]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise Damaged("its header cannot be read") from None
    if not all(type(n) is int and 0 <= n < 2**48 for n in (count, cells, end)) or not count:
        raise Damaged("its header makes no sense")
    if len(raw) != 8 + length + end:
        raise Damaged("it is cut off")
    return count, cells


def used(path: Path) -> None:
    """Note that a file or directory is used now: its modification time is what eviction goes by."""
    try:
        os.utime(path)
    except OSError:  # a cache of someone else's, or gone
        pass
