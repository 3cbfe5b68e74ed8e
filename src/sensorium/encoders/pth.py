"""Read the tensors of a PyTorch ``.pth`` file without PyTorch and without ``pickle``.

A ``.pth`` file is a pickle, and a pickle is a program. ``pth_pickle`` interprets the few instructions that a state
dict needs and nothing else: no name in the file is ever imported, so a hostile file cannot run code. Every size in the
file is checked against the bytes that are there before anything is allocated: memory stays within some 150 MB plus
three times the file's size (one read, and bfloat16 widened).

Two containers are read: the legacy one (five pickles, then raw storages; ``torch.save`` before 1.6) and the zip
archive that replaced it. Format source: ``torch/serialization.py`` and ``torch/_weights_only_unpickler.py``.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.encoders.pth_pickle import DTYPES, Bad, Machine, StorageRef, TensorRef, short
from sensorium.errors import SensoriumError

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused; the encoders this reader serves are below 100 MB."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_pth(path: Path | str) -> dict[str, np.ndarray]:
    """Read a state dict.

    Args:
        path: A legacy or zip ``.pth`` file that holds a mapping from names to tensors.

    Returns:
        Read-only arrays by name, in the file's order; bfloat16 comes as float32, all else in its own type.

    Raises:
        SensoriumError: The file is missing, truncated, corrupt, too large, or holds anything but tensors.
    """
    try:
        data = _read(path)
        return _read_zip(data) if data[:4] == b"PK\x03\x04" else _read_legacy(data)
    except Bad as error:
        raise SensoriumError(
            f"The weights file {path} is refused because {error}; fetch it again, or save a plain state dict."
        ) from None


def file_sha256(path: Path | str) -> str:
    """Hex digest of a weights file.

    Raises:
        SensoriumError: The file cannot be read or is too large.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path | str) -> bytes:
    try:
        status = Path(path).stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait, reading a device never end
            raise SensoriumError(f"The weights {path} are no file; give a .pth file.")
        if size <= MAX_FILE_BYTES:
            with Path(path).open("rb") as file:
                return file.read(size)
    except OSError as error:
        raise SensoriumError(f"Cannot read the weights file {path}: {error.strerror or error}.") from None
    raise SensoriumError(f"The weights file {path} has {size} bytes, more than {MAX_FILE_BYTES}; give a smaller model.")


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Magic, protocol, system, object and storage keys (one pickle each), then ``int64 count + raw items`` per key."""
    at = 0
    parts: list[Any] = []
    for index in range(5):
        if index == 0 and not _starts_with_magic(data):
            raise Bad("it does not start as a PyTorch file does")
        value, at = Machine(data, at).run()
        parts.append(value)
        if index == 1 and value != _PROTOCOL:
            raise Bad(f"its legacy protocol is not {_PROTOCOL}")  # the value could be anything, too large to print
    system, obj, keys = parts[2:]
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Bad("it was not saved on a little-endian machine")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Bad("its list of storages is malformed")
    if len(set(keys)) != len(keys):
        raise Bad("it lists a storage twice")
    refs = _storages(obj)
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in refs:
            raise Bad(f"storage {short(key)} belongs to no tensor")
        if at + 8 > len(data):
            raise Bad("it is cut short")
        (numel,) = struct.unpack_from("<q", data, at)
        if numel != refs[key].numel:
            raise Bad(f"storage {short(key)} says {numel} items where its tensors say {refs[key].numel}")
        storages[key] = _items(memoryview(data)[at + 8 :], refs[key])
        at += 8 + numel * DTYPES[refs[key].kind].itemsize
    return _tensors(obj, storages)


def _starts_with_magic(data: bytes) -> bool:
    try:
        value, _ = Machine(data, 0).run()
    except Bad:
        return False
    return bool(value == _MAGIC)


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    """``<name>/data.pkl`` holds the object, ``<name>/data/<key>`` each storage; torch never compresses them."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError):
        raise Bad("its zip directory is damaged") from None
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Bad(f"it holds {len(pickles)} objects where a state dict is one")
    root = pickles[0][: -len("data.pkl")]

    def member(name: str) -> memoryview:
        info = members.get(name)
        if info is None:
            raise Bad(f"its member {short(name)} is missing")
        # A view instead of ZipFile.read: no copy, no decompression, so no bomb.
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise Bad(f"its member {short(name)} is compressed or encrypted, which PyTorch never does")
        head = info.header_offset
        if head < 0 or head + 30 > len(data) or data[head : head + 4] != b"PK\x03\x04":
            raise Bad("its zip directory is damaged")
        name_size, extra_size = struct.unpack_from("<HH", data, head + 26)
        start = head + 30 + name_size + extra_size
        if start + info.file_size > len(data):
            raise Bad("it is cut short")
        return memoryview(data)[start : start + info.file_size]

    if root + "byteorder" in members and bytes(member(root + "byteorder")) != b"little":
        raise Bad("it was not saved on a little-endian machine")
    obj, _ = Machine(bytes(member(pickles[0])), 0).run()
    refs = _storages(obj)
    return _tensors(obj, {key: _items(member(f"{root}data/{key}"), ref) for key, ref in refs.items()})


def _storages(obj: Any) -> dict[str, StorageRef]:
    """The storages that the object's tensors stand on, each declared in one way only."""
    if not isinstance(obj, dict) or not obj:
        raise Bad("it does not hold a state dict (names with tensors)")
    refs: dict[str, StorageRef] = {}
    for name, value in obj.items():
        if not isinstance(name, str) or not isinstance(value, TensorRef):
            raise Bad(f"its entry {short(name)} is not a named tensor")
        if refs.setdefault(value.storage.key, value.storage) != value.storage:
            raise Bad(f"storage {short(value.storage.key)} is declared in two ways")
    return refs


def _items(raw: memoryview, ref: StorageRef) -> np.ndarray:
    dtype = DTYPES[ref.kind]
    size = ref.numel * dtype.itemsize
    if len(raw) < size:
        raise Bad("it is cut short")
    items = np.frombuffer(raw[:size], dtype=dtype) if size else np.empty(0, dtype)
    if ref.kind == "BFloat16Storage":
        items = (items.astype("<u4") << np.uint32(16)).view("<f4")
    return items


def _tensors(obj: dict[str, TensorRef], storages: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, ref in obj.items():
        items = storages.get(ref.storage.key)
        if items is None:
            raise Bad(f"the storage of {short(name)} is missing")
        count = 1
        last = ref.offset
        for length, stride in zip(ref.shape, ref.strides):
            count *= length
            last += (length - 1) * stride
        if count > items.size or (count and last >= items.size) or ref.offset > items.size:
            raise Bad(f"tensor {short(name)} reaches outside its storage")
        steps = tuple(stride * items.itemsize for stride in ref.strides) if count else None
        array = np.ndarray(ref.shape, items.dtype, items[ref.offset :] if count else None, strides=steps)
        array.flags.writeable = False
        tensors[name] = array
    return tensors
