"""Where Sensorium keeps files, and how several processes share them: cache directories, atomic writes, locks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sensorium.errors import SensoriumError, UsageError

_TRUE = {"1", "true", "yes", "on"}


def home() -> Path:
    """The directory that holds everything Sensorium caches: ``$SENSORIUM_HOME``, or the platform's cache directory.

    Linux: ``$XDG_CACHE_HOME/sensorium`` or ``~/.cache/sensorium``; macOS: ``~/Library/Caches/sensorium``;
    Windows: ``%LOCALAPPDATA%\\sensorium``. The directory need not exist yet.
    """
    configured = os.environ.get("SENSORIUM_HOME", "").strip()
    try:
        if configured:
            return Path(configured).expanduser().absolute()
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = str(Path.home() / "Library" / "Caches")
        else:
            base = os.environ.get("XDG_CACHE_HOME", "")
            # The XDG specification says that a relative path must be ignored.
            if not base or not Path(base).is_absolute():
                base = str(Path.home() / ".cache")
    except (RuntimeError, OSError) as error:
        raise SensoriumError(
            "The home directory of this user is unknown, so there is no place for the cache; "
            "set SENSORIUM_HOME to a directory that you can write to."
        ) from error
    return Path(base) / "sensorium"


def offline() -> bool:
    """True when ``$SENSORIUM_OFFLINE`` is set to 1, true, yes or on: then nothing is fetched over the network.

    Raises:
        UsageError: it is set to something that is neither yes nor no: a switch that forbids must not be misread.
    """
    said = os.environ.get("SENSORIUM_OFFLINE", "").strip().lower()
    if said not in _TRUE and said not in ("", "0", "false", "no", "off"):
        raise UsageError(f"SENSORIUM_OFFLINE is {said[:40]!r}; set it to 1 to forbid downloads, or to 0.")
    return said in _TRUE


def cache_dir(*names: str) -> Path:
    """The directory ``home()/names...``, made if it does not exist.

    Raises:
        SensoriumError: the directory cannot be made (the sentence names it and the reason).
        ValueError: a name would leave the cache (a programming error).
    """
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if not name or parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name for a cache directory")
    path = home().joinpath(*names)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def write_error(path: Path, error: OSError) -> SensoriumError:
    """The sentence for a write that the operating system refused, into the cache or to a place of the user's."""
    cached = path.absolute().is_relative_to(home())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        other = "set SENSORIUM_HOME to" if cached else "choose"
        return SensoriumError(f"The disk that holds {path} is full; free some space there, or {other} a larger disk.")
    reason = error.strerror or type(error).__name__
    other = "set SENSORIUM_HOME to a directory" if cached else "choose a place"
    return SensoriumError(f"{path} cannot be written ({reason}); {other} that you can write to.")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that becomes ``path`` when the block ends without an exception.

    What stands at ``path`` must be a file: root could put one in the place of ``/dev/null``.

    A reader sees the old file or the whole new one, never half; after an exception (or a kill) ``path`` is as it was.
    ``mode`` is "wb" or "w" (UTF-8, newlines as given). Parent directories are made. The file that is yielded has its
    temporary path as ``.name``.

    Raises:
        SensoriumError: the directory or the file cannot be written, the disk is full, a device or a directory stands
            there.
    """
    target = Path(path)
    if os.path.exists(target) and not os.path.isfile(target):  # noqa: PTH110, PTH113 (Path raises for odd names)
        kind = "a directory" if target.is_dir() else "no regular file"
        raise SensoriumError(f"{target} is {kind}, so it cannot be written over; give the path of a file.")
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', not {mode!r}")
    text: dict[str, Any] = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    temporary: Path | None = None
    inside = False  # an OSError of the caller's own (say, from reading its input) is not ours to explain
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:60]}.", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, mode, **text) as handle:
            inside = True
            yield handle
            inside = False
            handle.flush()
            os.fsync(handle.fileno())
        _copy_umask(temporary)
        _replace(temporary, target)
        temporary = None
    except OSError as error:
        if inside and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise write_error(target, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that becomes ``path`` when the block ends without an exception.

    A directory that stood there before is replaced. For results of several files (a graph and its weights).

    Raises:
        SensoriumError: the directory cannot be made, written or moved, the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:60]}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise write_error(target, error) from error
    inside = True
    try:
        yield temporary
        inside = False
        temporary.chmod(0o777 & ~_umask())
        _replace_directory(temporary, target)
    except OSError as error:
        if inside and not _of_writing(error, temporary):
            raise
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _of_writing(error: OSError, directory: Path) -> bool:
    """Whether an error comes from writing into `directory`, and not from something the caller did elsewhere."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error.filename, (str, os.PathLike)):
        return Path(error.filename).is_relative_to(directory)
    return error.errno is not None and error.filename is None  # an open file; decompressors raise without a number


def remove_stale(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed inside `atomic_dir(path)` left. The caller holds the lock of `path`."""
    target = Path(path)
    left = re.compile(rf"\.{re.escape(target.name[:60])}\.[a-z0-9_]{{8}}\.(tmp|old)")
    with contextlib.suppress(OSError):
        for entry in list(target.parent.iterdir()):
            if left.fullmatch(entry.name) and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], timeout: float | None = None) -> Iterator[None]:
    """Hold the lock of ``path`` (the file ``path.lock`` beside it) among all processes and threads of this machine.

    The operating system drops the lock when its holder dies, so a crash leaves nothing to clean up. The lock is not
    re-entrant. On a file system without locks the block runs unlocked (writes are atomic anyway).

    Args:
        path: what is guarded; it need not exist, its directory is made.
        timeout: seconds to wait for another holder; None waits for ever.

    Raises:
        SensoriumError: the lock file cannot be made, or another process held the lock for ``timeout`` seconds.
    """
    target = Path(path)
    lock = target.with_name(target.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+b")
    except OSError as error:
        raise write_error(lock, error) from error
    with handle:
        started = time.monotonic()
        while not _try_lock(handle):
            waited = time.monotonic() - started
            if timeout is not None and waited >= timeout:
                raise SensoriumError(
                    f"Another Sensorium process has held {lock} for {timeout:.0f} s; wait for it, or end it, and retry."
                )
            time.sleep(min(0.2, 0.01 + waited / 10))
        try:
            yield
        finally:
            _unlock(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: IO[bytes]) -> bool:
        handle.seek(0)
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

    def _unlock(handle: IO[bytes]) -> None:
        handle.seek(0)
        with contextlib.suppress(OSError):
            msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(handle: IO[bytes]) -> bool:
        try:
            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return True  # a file system without locks
            raise
        return True

    def _unlock(handle: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle.fileno(), fcntl.LOCK_UN)


def _umask() -> int:
    # os.umask is the only portable way to read it; the cost is a race of a few instructions with other threads.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _copy_umask(path: Path) -> None:
    """mkstemp makes files that only their owner reads; a shared cache needs the user's usual rights."""
    with contextlib.suppress(OSError):
        path.chmod(0o666 & ~_umask())


def _replace(source: Path, target: Path) -> None:
    """os.replace, repeated for a moment on Windows, where a virus scanner or a reader may hold the target open."""
    for attempt in range(20 if sys.platform == "win32" else 1):
        try:
            source.replace(target)
            return
        except PermissionError:
            if sys.platform != "win32" or attempt == 19:
                raise
            time.sleep(0.05)


def _replace_directory(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        old = Path(tempfile.mkdtemp(prefix=f".{target.name[:60]}.", suffix=".old", dir=target.parent))
        try:
            target.rename(old / "was")
            source.rename(target)
        finally:
            if not target.exists() and (old / "was").exists():  # interrupted, or refused, between the two
                (old / "was").rename(target)
            shutil.rmtree(old, ignore_errors=True)
