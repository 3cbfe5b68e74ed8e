"""Read the tensors of a PyTorch ``.pth`` file without PyTorch and without ``pickle``.

A ``.pth`` file is a pickle, and a pickle is a program. This module interprets the few instructions that a state dict
needs and nothing else: no name in the file is ever imported, so a hostile file cannot run code. Every size in the file
is checked against the bytes that are there before anything is allocated, so memory stays within a small multiple of
the file's own size.

Two containers are read: the legacy one (five pickles, then raw storages; ``torch.save`` before 1.6) and the zip
archive that replaced it. Format source: ``torch/serialization.py`` and ``torch/_weights_only_unpickler.py``.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused; the encoders this reader serves are below 100 MB."""

MAX_INSTRUCTIONS = 1_000_000
"""Per pickle. A tensor takes about 40; each instruction can make an object of some 100 bytes out of one byte."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DTYPES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # widened to float32 below: numpy has no bfloat16
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Bad(Exception):
    """Why a file is refused; ``read_pth`` adds the path and what to do."""


@dataclass(frozen=True)
class _Global:
    """A name that the file mentions. It is compared with the known ones, never imported."""

    name: str


@dataclass(frozen=True)
class _StorageRef:
    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class _TensorRef:
    storage: _StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
    except _Bad as error:
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


# --- containers ---------------------------------------------------------------------------------------------------


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Magic, protocol, system, object and storage keys (one pickle each), then ``int64 count + raw items`` per key."""
    at = 0
    parts: list[Any] = []
    for index in range(5):
        if index == 0 and not _starts_with_magic(data):
            raise _Bad("it does not start as a PyTorch file does")
        value, at = _Machine(data, at).run()
        parts.append(value)
        if index == 1 and value != _PROTOCOL:
            raise _Bad(f"its legacy protocol is {value!r}, not {_PROTOCOL}")
    system, obj, keys = parts[2:]
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Bad("it was not saved on a little-endian machine")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _Bad("its list of storages is malformed")
    if len(set(keys)) != len(keys):
        raise _Bad("it lists a storage twice")
    refs = _storages(obj)
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in refs:
            raise _Bad(f"storage {_short(key)} belongs to no tensor")
        if at + 8 > len(data):
            raise _Bad("it is cut short")
        (numel,) = struct.unpack_from("<q", data, at)
        if numel != refs[key].numel:
            raise _Bad(f"storage {_short(key)} says {numel} items where its tensors say {refs[key].numel}")
        storages[key] = _items(memoryview(data)[at + 8 :], refs[key])
        at += 8 + numel * _DTYPES[refs[key].kind].itemsize
    return _tensors(obj, storages)


def _starts_with_magic(data: bytes) -> bool:
    try:
        value, _ = _Machine(data, 0).run()
    except _Bad:
        return False
    return bool(value == _MAGIC)


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    """``<name>/data.pkl`` holds the object, ``<name>/data/<key>`` each storage; torch never compresses them."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError):
        raise _Bad("its zip directory is damaged") from None
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _Bad(f"it holds {len(pickles)} objects where a state dict is one")
    root = pickles[0][: -len("data.pkl")]

    def member(name: str) -> memoryview:
        info = members.get(name)
        if info is None:
            raise _Bad(f"its member {_short(name)} is missing")
        # A view instead of ZipFile.read: no copy, no decompression, so no bomb.
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise _Bad(f"its member {_short(name)} is compressed or encrypted, which PyTorch never does")
        head = info.header_offset
        if head < 0 or head + 30 > len(data) or data[head : head + 4] != b"PK\x03\x04":
            raise _Bad("its zip directory is damaged")
        name_size, extra_size = struct.unpack_from("<HH", data, head + 26)
        start = head + 30 + name_size + extra_size
        if start + info.file_size > len(data):
            raise _Bad("it is cut short")
        return memoryview(data)[start : start + info.file_size]

    if root + "byteorder" in members and bytes(member(root + "byteorder")) != b"little":
        raise _Bad("it was not saved on a little-endian machine")
    obj, _ = _Machine(bytes(member(pickles[0])), 0).run()
    refs = _storages(obj)
    return _tensors(obj, {key: _items(member(f"{root}data/{key}"), ref) for key, ref in refs.items()})


def _storages(obj: Any) -> dict[str, _StorageRef]:
    """The storages that the object's tensors stand on, each declared in one way only."""
    if not isinstance(obj, dict) or not obj:
        raise _Bad("it does not hold a state dict (names with tensors)")
    refs: dict[str, _StorageRef] = {}
    for name, value in obj.items():
        if not isinstance(name, str) or not isinstance(value, _TensorRef):
            raise _Bad(f"its entry {_short(name)} is not a named tensor")
        if refs.setdefault(value.storage.key, value.storage) != value.storage:
            raise _Bad(f"storage {_short(value.storage.key)} is declared in two ways")
    return refs


def _items(raw: memoryview, ref: _StorageRef) -> np.ndarray:
    dtype = _DTYPES[ref.kind]
    size = ref.numel * dtype.itemsize
    if len(raw) < size:
        raise _Bad("it is cut short")
    items = np.frombuffer(raw[:size], dtype=dtype) if size else np.empty(0, dtype)
    if ref.kind == "BFloat16Storage":
        items = (items.astype("<u4") << np.uint32(16)).view("<f4")
    return items


def _tensors(obj: dict[str, _TensorRef], storages: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, ref in obj.items():
        items = storages.get(ref.storage.key)
        if items is None:
            raise _Bad(f"the storage of {_short(name)} is missing")
        count = 1
        last = ref.offset
        for length, stride in zip(ref.shape, ref.strides):
            count *= length
            last += (length - 1) * stride
        if count > items.size or (count and last >= items.size) or ref.offset > items.size:
            raise _Bad(f"tensor {_short(name)} reaches outside its storage")
        steps = tuple(stride * items.itemsize for stride in ref.strides) if count else None
        array = np.ndarray(ref.shape, items.dtype, items[ref.offset :] if count else None, strides=steps)
        array.flags.writeable = False
        tensors[name] = array
    return tensors


# --- the pickle machine -------------------------------------------------------------------------------------------


def _short(value: object) -> str:
    """A value from the file, fit for a one-line message."""
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise _Bad("a tensor has an impossible size")
    return value


def _naturals(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 16:
        raise _Bad("a tensor has an impossible shape")
    return tuple(_natural(item) for item in value)


def _rebuild_tensor(args: tuple[Any, ...]) -> _TensorRef:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``."""
    if len(args) not in (6, 7) or not isinstance(args[0], _StorageRef):
        raise _Bad("a tensor is malformed")
    shape, strides = _naturals(args[2]), _naturals(args[3])
    if len(shape) != len(strides):
        raise _Bad("a tensor has an impossible shape")
    return _TensorRef(args[0], _natural(args[1]), shape, strides)


def _rebuild_parameter(args: tuple[Any, ...]) -> _TensorRef:
    """``torch._utils._rebuild_parameter(data, requires_grad, hooks)``."""
    if len(args) != 3 or not isinstance(args[0], _TensorRef):
        raise _Bad("a tensor is malformed")
    return args[0]


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    if args:
        raise _Bad("a mapping is malformed")
    return {}


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_NAMES = {*_CALLS, *(f"torch.{kind}" for kind in _DTYPES)}


class _Mark:
    """The stack's marker."""


_MARK = _Mark()


class _Machine:
    """One pickle, interpreted. ``run`` gives its value and the offset behind it."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        handlers = _HANDLERS
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                value = self.pop()
                if self.stack:
                    raise _Bad("its pickle leaves values behind")
                return value, self.at
            handler = handlers.get(code)
            if handler is None:
                raise _Bad(f"its pickle uses instruction 0x{code:02x}, which no state dict needs")
            handler(self)
        raise _Bad(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _Bad("it is cut short")
        raw = self.data[self.at : end]
        self.at = end
        return raw

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise _Bad("it holds a name that is not UTF-8") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise _Bad("it is cut short or holds an overlong name")
        text = self.text(end - self.at)
        self.at = end + 1
        return text

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Bad("its pickle is malformed")
        return self.stack.pop()

    def popmark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise _Bad("its pickle is malformed")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _Bad("its pickle is malformed")
        self.stack.append(self.memo[index])

    def long1(self) -> None:
        self.push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def global_(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise _Bad(f"it asks for {_short(full)}, which no state dict needs")
        self.push(_Global(full))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Bad("its pickle is malformed")
        self.global_(module, name)

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or function.name not in _CALLS or type(args) is not tuple:
            raise _Bad("it calls something that no state dict needs")
        self.push(_CALLS[function.name](args))

    def persistent(self) -> None:
        """``("storage", type, key, location, numel[, view])``."""
        value = self.pop()
        if type(value) is not tuple or len(value) not in (5, 6) or value[0] != "storage":
            raise _Bad("a storage is malformed")
        _, kind, key, _, numel = value[:5]
        if not isinstance(kind, _Global) or kind.name[len("torch.") :] not in _DTYPES or not isinstance(key, str):
            raise _Bad("a storage is malformed")
        if len(value) == 6 and value[5] is not None:
            raise _Bad("a storage is a view of another, which state dicts no longer are")
        self.push(_StorageRef(kind.name[len("torch.") :], key, _natural(numel)))

    def append(self, values: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            raise _Bad("its pickle is malformed")
        target.extend(values)
        self.push(target)

    def set(self, values: list[Any]) -> None:
        target = self.pop()
        if type(target) is not dict or len(values) % 2:
            raise _Bad("its pickle is malformed")
        for key, value in zip(values[::2], values[1::2]):
            # Only flat keys: hashing a tuple that holds itself many times over could take forever.
            if type(key) not in (str, int):
                raise _Bad("a mapping has keys that are not names")
            target[key] = value
        self.push(target)

    def setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set([key, value])

    def build(self) -> None:
        """State of an OrderedDict: torch hangs ``_metadata`` (module versions) on it, which nothing here needs."""
        self.pop()
        if not self.stack or type(self.stack[-1]) is not dict:
            raise _Bad("it sets the state of something that is not a mapping")


_HANDLERS: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda m: None if 2 <= m.number("<B") <= 5 else _refuse_protocol(),  # PROTO
    0x95: lambda m: None if m.number("<Q") <= len(m.data) - m.at else _refuse_frame(),  # FRAME
    0x4E: lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1
    0x4D: lambda m: m.push(m.number("<H")),  # BININT2
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x8A: lambda m: m.long1(),  # LONG1
    0x47: lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x8C: lambda m: m.push(m.text(m.number("<B"))),  # SHORT_BINUNICODE
    0x58: lambda m: m.push(m.text(m.number("<I"))),  # BINUNICODE
    0x7D: lambda m: m.push({}),  # EMPTY_DICT
    0x5D: lambda m: m.push([]),  # EMPTY_LIST
    0x29: lambda m: m.push(()),  # EMPTY_TUPLE
    0x28: lambda m: m.push(_MARK),  # MARK
    0x74: lambda m: m.push(tuple(m.popmark())),  # TUPLE
    0x85: lambda m: m.tuple_of(1),  # TUPLE1
    0x86: lambda m: m.tuple_of(2),  # TUPLE2
    0x87: lambda m: m.tuple_of(3),  # TUPLE3
    0x61: lambda m: m.append([m.pop()]),  # APPEND
    0x65: lambda m: m.append(m.popmark()),  # APPENDS
    0x73: lambda m: m.setitem(),  # SETITEM
    0x75: lambda m: m.set(m.popmark()),  # SETITEMS
    0x71: lambda m: m.put(m.number("<B")),  # BINPUT
    0x72: lambda m: m.put(m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    0x68: lambda m: m.get(m.number("<B")),  # BINGET
    0x6A: lambda m: m.get(m.number("<I")),  # LONG_BINGET
    0x63: lambda m: m.global_(m.line(), m.line()),  # GLOBAL
    0x93: lambda m: m.stack_global(),  # STACK_GLOBAL
    0x52: lambda m: m.reduce(),  # REDUCE
    0x62: lambda m: m.build(),  # BUILD
    0x51: lambda m: m.persistent(),  # BINPERSID
}


def _refuse_protocol() -> None:
    raise _Bad("its pickle protocol is unknown")


def _refuse_frame() -> None:
    raise _Bad("it is cut short")
