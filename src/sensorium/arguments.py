"""What callers of the Python interface pass, checked: each wrong value is one sentence that says what to give."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorium.errors import UsageError


def shown(value: object) -> str:
    """A wrong value for a message: short plain values as they are, anything else by its type."""
    plain = isinstance(value, (str, bytes, int, float)) or value is None
    return repr(value) if plain and len(repr(value)) <= 60 else f"a value of type {type(value).__name__}"


def check_threads(threads: object) -> None:
    """Raise UsageError unless `threads` is None or a whole number of 1 or more."""
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise UsageError(f"threads is {shown(threads)}; give a whole number of 1 or more, or None for all cores.")


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` in it as a shell would have it; a ``~name`` that nobody has stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path's own raises for such a name)


def output_file(given: Path, option: str, ending: str = "", inputs: Sequence[str | Path] = ()) -> Path:
    """Where a result will be written: links followed, ``~`` expanded.

    Raises UsageError for a file that could not be written, before the work is done whose result it would hold.

    Args:
        given: as the user gave it.
        option: what gave it.
        ending: what the name must end with, such as ".wav", where it ends with anything.
        inputs: files that the result is made of, none of which it may replace.
    """
    path = expanded(given)
    if os.path.islink(path):  # noqa: PTH114
        path = Path(os.path.realpath(path))
    above = next(place for place in path.absolute().parents if os.path.exists(place))  # noqa: PTH110 (odd names)
    if str(given) == "-":
        reason = "standard output takes text alone"
    elif os.path.isdir(path):  # noqa: PTH112
        reason = "it is a directory"
    elif os.path.islink(path):  # noqa: PTH114
        reason = "it is a link that leads to itself"
    elif _special(expanded(given)) or (os.path.exists(path) and not os.path.isfile(path)):  # noqa: PTH110, PTH113
        reason = "it is no regular file"
    elif ending and path.suffix.lower() not in ("", ending):
        reason = f"what is written is {ending.removeprefix('.').upper()}; name it {path.stem}{ending}"
    elif not above.is_dir():
        reason = f"{above} is no directory"
    elif os.path.exists(path) and any(os.path.exists(each) and path.samefile(each) for each in inputs):  # noqa: PTH110
        reason = "it is what you gave to be read"
    elif reason := _unwritable(above, path):
        pass
    else:
        return path
    raise UsageError(f"{option} {given} cannot be written ({reason}); give another file.")


def _special(path: Path) -> bool:
    """Whether a name is one of the system's own, such as /dev/stdout, which may lead to a regular file."""
    first = Path(os.path.abspath(path)).parts[1:2]  # noqa: PTH100 (links stay)
    return first in (("dev",), ("proc",), ("sys",)) and not str(path).startswith("/dev/shm/")


def _unwritable(above: Path, path: Path) -> str:
    """Why no file can be made, by trying; an empty text where it can. Permissions mean little to root."""
    if not os.access(above, os.W_OK):
        return f"you may not write into {above}"
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
        os.stat(above / path.name)  # noqa: PTH116 (a name that is too long for this file system)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def check_model(model: object) -> None:
    """Raise UsageError unless `model` is a name or a path."""
    if not isinstance(model, (str, os.PathLike)):
        raise UsageError(f'the model is {shown(model)}; give a name, such as "mini", or a directory.')


def check_names(options: Mapping[str, Any], taker: Callable[..., Any], also: Iterable[str] = ()) -> None:
    """Raise UsageError for an option that is no parameter of `taker` and none of `also`."""
    names = [*inspect.signature(taker).parameters, *also]
    for name in options:
        if name not in names:
            known = [known for known in names if known not in _NOT_OPTIONS]
            raise UsageError(f"the option {name!r} is unknown; known options: {', '.join(known)}.")


_NOT_OPTIONS = ("model", "image", "labels", "stop_ids")


def stop_strings(stop: object) -> list[str]:
    """Strings that end an answer, from one text, several or None. Raises UsageError for anything else."""
    if stop is None:
        return []
    stops: list[Any] = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, Iterable) else [stop]
    if not all(isinstance(text, str) and text for text in stops):
        raise UsageError("stop strings must be texts of at least one character; give a text, a list of texts or None.")
    return stops


def several(images: Any) -> list[Any]:
    """Pictures as a list: one picture is a list of one, and so is a path; None is none."""
    if images is None:
        return []
    # Bytes, files and arrays can be iterated too, but are one picture each; so is an array unless it holds several.
    single = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(images, "read")
    if single or not isinstance(images, Iterable) or getattr(images, "ndim", 4) < 4:
        return [images]
    return list(images)
