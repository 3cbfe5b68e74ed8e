"""What many processes agree on about the feature cache: who uses what, who computes what, and what goes first."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensorium import hub
from sensorium.errors import SensoriumError, UsageError
from sensorium.training.feature_shard import SUFFIX

LIMIT_GB = 32.0
VARIABLE = "SENSORIUM_FEATURES_GB"
MEDIA, LEASES, UPKEEP = "media", "leases", "upkeep"
_STORE = re.compile(r"[0-9a-f]{24}")
_STALE_S = 3600.0


class Roll:
    """Lines that hold as long as the process that wrote them lives: its lock ends with it, even by SIGKILL.

    Args:
        directory: of all such files; it is made.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._held = contextlib.ExitStack()
        self._held.enter_context(hub.file_lock(self.path))
        self.path.touch()
        self.close = weakref.finalize(self, _release, self._held, self.path)  # at the latest when the process ends

    def add(self, lines: Iterable[str]) -> None:
        """Add lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def replace(self, lines: Iterable[str]) -> None:
        """Let these be all lines. The caller holds the lock under which others read."""
        self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _release(held: contextlib.ExitStack, path: Path) -> None:
    for file in (path, path.with_name(path.name + ".lock")):
        with contextlib.suppress(OSError):
            file.unlink()
    held.close()


def live(directory: Path, but: Roll | None = None) -> set[str]:
    """The lines of all rolls whose processes live; those of dead ones are removed."""
    lines: set[str] = set()
    for path in sorted(directory.glob("*")) if directory.is_dir() else ():
        if path.suffix == ".lock" or (but and path == but.path):
            continue
        try:
            with hub.file_lock(path, timeout=0):
                dead = True
        except SensoriumError:
            dead = False
        with contextlib.suppress(OSError):
            if dead:
                path.unlink()
                path.with_name(path.name + ".lock").unlink()
            else:
                lines.update(path.read_text(encoding="utf-8").split())
    return lines


class Lease:
    """What this process reads: it is not evicted while the process lives. Names are relative to ``root``."""

    def __init__(self, root: Path) -> None:
        self._root, self._names = root, set[str]()
        self._roll = Roll(root / LEASES)
        self.close = self._roll.close

    def add(self, paths: Iterable[Path]) -> None:
        """Lease files or directories below the root, before they are opened."""
        names = {path.relative_to(self._root).as_posix() for path in paths} - self._names
        if names:
            with hub.file_lock(self._root / UPKEEP):  # eviction looks at leases under this lock
                self._roll.add(sorted(names))
            self._names |= names


@dataclass(frozen=True)
class Unit:
    """What goes as a whole: a shard of media features, or a store of scenes."""

    path: Path
    size: int
    used: float
    kind: str  # "media" or "scenes"


def units(root: Path, scenes: bool = True) -> list[Unit]:
    """All that stands in the cache, least recently used first."""
    found = []
    for path in (root / MEDIA).glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append(Unit(path, state.st_size, state.st_mtime, "media"))
    for path in root.iterdir() if scenes and root.is_dir() else ():
        if _STORE.fullmatch(path.name) and path.is_dir():
            with contextlib.suppress(OSError):
                found.append(Unit(path, _tree(path), path.stat().st_mtime, "scenes"))
    return sorted(found, key=lambda unit: (unit.used, unit.path))


def evict(root: Path, limit: int, scenes: bool = False) -> int:
    """Remove what was used least recently until at most ``limit`` bytes are left, but nothing that a live process uses.

    Args:
        root: the directory of all features.
        limit: bytes.
        scenes: also stores of scenes, each as a whole; else they are neither counted nor removed.

    Returns:
        Bytes freed.
    """
    freed = 0
    with hub.file_lock(root / UPKEEP):
        found = units(root, scenes)
        total = sum(unit.size for unit in found)
        if total <= limit:
            return 0
        leased = live(root / LEASES)
        for unit in found:
            if total - freed <= limit:
                break
            if unit.path.relative_to(root).as_posix() in leased:
                continue
            with contextlib.suppress(OSError):  # open elsewhere on Windows, or removed by hand
                _remove(unit.path)
                freed += unit.size
    return freed


def remove_stale(root: Path) -> None:
    """Remove unfinished files that killed processes left an hour ago or earlier."""
    for path in (*(root / MEDIA).glob("*/.*.tmp"), *root.glob("*/.*.tmp")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def bound() -> int:
    """Bytes that features of media may take: ``$SENSORIUM_FEATURES_GB``, or 32 GB."""
    given = os.environ.get(VARIABLE, "").strip()
    try:
        size = float(given) if given else LIMIT_GB
        if not 0 < size < 1e9:
            raise ValueError
    except ValueError:
        raise UsageError(f"{VARIABLE} is {given!r}; give a number of gigabytes, such as {LIMIT_GB:.0f}.") from None
    return int(size * 1e9)


def parse_size(text: str) -> int:
    """Bytes of "500MB", "20GB", "0". Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"{text[:40]!r} is no size; write for example 20GB or 500MB.")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def human(size: float) -> str:
    """Bytes for people: "4.9 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _tree(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
        return
    files: Sequence[Path] = list(path.iterdir())
    for file in files:
        file.unlink()
    path.rmdir()
