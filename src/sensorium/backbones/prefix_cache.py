"""Remembers keys and values of earlier prompts, so that a prompt that begins like one of them skips that beginning.

A position is identified by what stands at it and before it: a token id, or the row of a medium's embeddings, named by a
digest of its content. The cache is bounded in bytes; what was used least recently goes first.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]

_TOKEN = -1


def token_codes(ids: tuple[int, ...]) -> Codes:
    """Codes int64 [n, 3] of token ids."""
    codes = np.zeros((len(ids), 3), np.int64)
    codes[:, 0] = _TOKEN
    codes[:, 1] = ids
    return codes


def media_codes(rows: int, key: str, embeds: NDArray[np.float32]) -> Codes:
    """Codes int64 [rows, 3] of a medium's embeddings: the row, and 128 bits of a digest of `key`, or of the values when
    there is no key. Distinct media never share a code (short of a collision of BLAKE2)."""
    content = b"k" + key.encode() if key else b"v" + np.ascontiguousarray(embeds).tobytes()
    digest = hashlib.blake2b(content, digest_size=16).digest()
    codes = np.empty((rows, 3), np.int64)
    codes[:, 0] = np.arange(rows)
    codes[:, 1:] = np.frombuffer(digest, np.int64)
    return codes


@dataclass(eq=False)
class _Entry:
    codes: Codes
    past: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.past.nbytes


class PrefixCache:
    """A byte-bounded store of (codes [n, 3], past [2 * layers, kv_heads, n, head_dim]); safe to share by threads."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self._entries: list[_Entry] = []  # least recently used first
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries)

    def find(self, codes: Codes) -> NDArray[np.float32] | None:
        """The longest known beginning of `codes`, or None. A view: it must not be written to."""
        with self._lock:
            best, length = None, 0
            for entry in self._entries:
                common = _common(entry.codes, codes)
                if common > length:
                    best, length = entry, common
            if best is None:
                return None
            self._entries.remove(best)
            self._entries.append(best)
            return best.past[:, :, :length]

    def add(self, codes: Codes, past: NDArray[np.float32]) -> None:
        """Keep `past`, which the caller gives away. Entries that it continues are dropped, for it serves them too."""
        entry = _Entry(codes, past)
        if not len(codes) or entry.nbytes > self.limit:
            return
        with self._lock:
            if any(_common(known.codes, codes) == len(codes) for known in self._entries):
                return
            self._entries = [known for known in self._entries if _common(known.codes, codes) < len(known.codes)]
            self._entries.append(entry)
            held = sum(known.nbytes for known in self._entries)
            while held > self.limit:
                held -= self._entries.pop(0).nbytes

    def wants(self, codes: Codes, bytes_per_position: int) -> bool:
        """Whether `add` would keep a prompt: it fits, and is not known already."""
        if len(codes) * (bytes_per_position + codes.itemsize * codes.shape[1]) > self.limit:
            return False
        with self._lock:
            return not any(_common(entry.codes, codes) == len(codes) for entry in self._entries)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


def _common(a: Codes, b: Codes) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).any(axis=1)
    return int(different.argmax()) if different.any() else n
