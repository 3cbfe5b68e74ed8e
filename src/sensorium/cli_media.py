"""What `-a FILE` attaches: pictures and sound, told apart by their content; `-` is standard input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from sensorium.errors import SensoriumError, UsageError

Attach = Annotated[
    list[str],
    typer.Option("--attach", "-a", metavar="FILE", help="A picture or sound, or - for standard input. Repeatable."),
]


def check(files: list[str], needed: Callable[[str], Any] | None = None) -> None:
    """Refuse, before anything loads, what no file can mean.

    A file that is none is opened by `needed`, which says what is wrong with it; without, only one that stands alone is,
    because of several pictures the others are still of use.
    """
    from sensorium.messages import refuse_remote

    if files.count("-") > 1:
        raise UsageError("- stands twice, but standard input can be read once.")
    for name in files:
        refuse_remote(name)
        if (needed or len(files) == 1) and name != "-" and not is_file(name):
            (needed or picture)(name)


def kind(name: str) -> str:
    """The kind of a file, "image" or "speech", by its first bytes: enough to begin loading for. Standard input, and
    what cannot be opened, is taken for a picture."""
    from sensorium.media import kind_of

    try:
        if name != "-" and is_file(name):
            with Path(name).open("rb") as file:
                return "speech" if kind_of(file.read(1 << 16)) == "audio" else "image"
    except OSError:
        pass
    return "image"


def refuse_neither(name: str) -> None:
    """Raise SensoriumError for a file that is empty or neither picture nor sound: it was to be a spoken question."""
    from sensorium.media import kind_of

    with contextlib.suppress(OSError), Path(name).open("rb") as file:
        if kind_of(file.read(1 << 16)) == "unknown":
            sound(name)


def attached(name: str, limits: Callable[[], Any] | None = None) -> Any:
    """A picture or a sound; `limits` gives those for sound. Raises SensoriumError for anything else."""
    from sensorium import media

    if name == "-":
        return media.load(standard_input("a picture or sound"))
    return sound(name, limits) if kind(name) == "speech" else media.load_image(name)


def apart(media: list[Any]) -> tuple[list[Any], list[Any]]:
    """Pictures, and sounds."""
    from sensorium.messages import kind_of

    return [m for m in media if kind_of(m) == "image"], [m for m in media if kind_of(m) == "speech"]


def picture(name: str) -> Any:
    """A picture. Raises SensoriumError for anything else."""
    from sensorium.media import load_image

    return load_image(standard_input("a picture") if name == "-" else name)


def sound(name: str, limits: Callable[[], Any] | None = None) -> Any:
    """A sound; `limits` gives the limits it has. Raises SensoriumError for anything else."""
    from sensorium.media import Limits, load_audio

    return load_audio(standard_input("sound") if name == "-" else name, (limits or Limits)())


def standard_input(what: str) -> BinaryIO:
    """Standard input, to read `what` from; SensoriumError where it is closed, UsageError where it is a terminal."""
    if sys.stdin is None:
        raise SensoriumError(f"Standard input is closed, so {what} cannot be read from it; pipe a file into it.")
    if sys.stdin.isatty():
        raise UsageError(f"- reads {what} from standard input, which is this terminal; pipe a file into it.")
    return sys.stdin.buffer


def is_file(name: str) -> bool:
    """Whether it is a regular file; also for names that no file system takes."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False
