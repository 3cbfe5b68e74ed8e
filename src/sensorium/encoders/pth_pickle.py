"""A pickle machine that can make state dicts and nothing else.

It interprets the instructions that ``torch.save`` uses for a mapping from names to tensors. Names in the pickle are
compared with a short list, never imported or called, and each size is checked before it is believed. After
``torch/_weights_only_unpickler.py``, without its import of torch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_INSTRUCTIONS = 1_000_000
"""Per pickle. A tensor takes about 40; each instruction can make an object of some 100 bytes out of one byte."""

# By torch's names of storages.
DTYPES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # the reader widens it to float32: numpy has no bfloat16
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Bad(Exception):
    """Why a file is refused, as the end of "... is refused because"."""


@dataclass(frozen=True)
class _Global:
    """A name that the file mentions. It is compared with the known ones, never imported."""

    name: str


@dataclass(frozen=True)
class StorageRef:
    """A run of ``numel`` numbers that the file holds under ``key``; ``kind`` is a key of ``DTYPES``."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; offset and strides count items. Nothing is checked yet but that they are naturals."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def short(value: object) -> str:
    """A value from the file, fit for a one-line message."""
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise Bad("a tensor has an impossible size")
    return value


def _naturals(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 16:
        raise Bad("a tensor has an impossible shape")
    return tuple(_natural(item) for item in value)


def _rebuild_tensor(args: tuple[Any, ...]) -> TensorRef:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``."""
    if len(args) not in (6, 7) or not isinstance(args[0], StorageRef):
        raise Bad("a tensor is malformed")
    shape, strides = _naturals(args[2]), _naturals(args[3])
    if len(shape) != len(strides):
        raise Bad("a tensor has an impossible shape")
    return TensorRef(args[0], _natural(args[1]), shape, strides)


def _rebuild_parameter(args: tuple[Any, ...]) -> TensorRef:
    """``torch._utils._rebuild_parameter(data, requires_grad, hooks)``."""
    if len(args) != 3 or not isinstance(args[0], TensorRef):
        raise Bad("a tensor is malformed")
    return args[0]


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    if args:
        raise Bad("a mapping is malformed")
    return {}


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_NAMES = {*_CALLS, *(f"torch.{kind}" for kind in DTYPES)}


class _Mark:
    """The stack's marker."""


_MARK = _Mark()


class Machine:
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
                    raise Bad("its pickle leaves values behind")
                return value, self.at
            handler = handlers.get(code)
            if handler is None:
                raise Bad(f"its pickle uses instruction 0x{code:02x}, which no state dict needs")
            handler(self)
        raise Bad(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Bad("it is cut short")
        raw = self.data[self.at : end]
        self.at = end
        return raw

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise Bad("it holds a name that is not UTF-8") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise Bad("it is cut short or holds an overlong name")
        text = self.text(end - self.at)
        self.at = end + 1
        return text

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Bad("its pickle is malformed")
        return self.stack.pop()

    def popmark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise Bad("its pickle is malformed")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Bad("its pickle is malformed")
        self.stack.append(self.memo[index])

    def long1(self) -> None:
        self.push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def global_(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise Bad(f"it asks for {short(full)}, which no state dict needs")
        self.push(_Global(full))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Bad("its pickle is malformed")
        self.global_(module, name)

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or function.name not in _CALLS or type(args) is not tuple:
            raise Bad("it calls something that no state dict needs")
        self.push(_CALLS[function.name](args))

    def persistent(self) -> None:
        """``("storage", type, key, location, numel[, view])``."""
        value = self.pop()
        if type(value) is not tuple or len(value) not in (5, 6) or value[0] != "storage":
            raise Bad("a storage is malformed")
        _, kind, key, _, numel = value[:5]
        if not isinstance(kind, _Global) or kind.name[len("torch.") :] not in DTYPES or not isinstance(key, str):
            raise Bad("a storage is malformed")
        if len(value) == 6 and value[5] is not None:
            raise Bad("a storage is a view of another, which state dicts no longer are")
        self.push(StorageRef(kind.name[len("torch.") :], key, _natural(numel)))

    def append(self, values: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            raise Bad("its pickle is malformed")
        target.extend(values)
        self.push(target)

    def set(self, values: list[Any]) -> None:
        target = self.pop()
        if type(target) is not dict or len(values) % 2:
            raise Bad("its pickle is malformed")
        for key, value in zip(values[::2], values[1::2]):
            # Only flat keys: hashing a tuple that holds itself many times over could take forever.
            if type(key) not in (str, int):
                raise Bad("a mapping has keys that are not names")
            target[key] = value
        self.push(target)

    def setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set([key, value])

    def build(self) -> None:
        """State of an OrderedDict: torch hangs ``_metadata`` (module versions) on it, which nothing here needs."""
        self.pop()
        if not self.stack or type(self.stack[-1]) is not dict:
            raise Bad("it sets the state of something that is not a mapping")


_HANDLERS: dict[int, Callable[[Machine], None]] = {
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
    raise Bad("its pickle protocol is unknown")


def _refuse_frame() -> None:
    raise Bad("it is cut short")
