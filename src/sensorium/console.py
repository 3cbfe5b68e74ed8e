"""Between the commands and the terminal: results, complaints, and the frame that turns every outcome into an exit
code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from types import FrameType


class Unwritable(Exception):
    """Standard output took no more."""


class Output:
    """Standard output whose own errors can be told from those of other files: they are `Unwritable`.

    Not only this module writes to it: the help and the tables come from libraries.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        return int(self._checked(self._stream.write, text))

    def flush(self) -> None:
        """As of the stream."""
        self._checked(self._stream.flush)

    def _checked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk
            raise Unwritable(error.strerror) from None


def write(text: str) -> None:
    """Write a result to standard output, at once."""
    if sys.stdout.isatty():  # a model must not be able to drive the terminal
        text = "".join(c for c in text if (c >= " " and c != "\x7f" and not "\x80" <= c <= "\x9f") or c in "\n\t")
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write one JSON object on one line; where standard output lacks a character of it, all in ASCII."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value)
    write(text + "\n")


def write_stream(pieces: Iterable[str]) -> None:
    """Write pieces of an answer as they come, and end the line."""
    for piece in pieces:
        write(piece)
    write("\n")


def bars(found: list[tuple[str, float]], width: int = 30) -> str:
    """Labels with their probabilities as lines with bars."""
    longest = max(len(text) for text, _ in found)
    return "".join(f"{text:<{longest}}  {p:6.1%}  {'█' * round(p * width)}\n" for text, p in found)


def show(pictures: Iterable[Any]) -> None:
    """Draw pictures, where the terminal can."""
    from sensorium.preview import colours, half_blocks

    shown = colours()
    if shown:
        for picture in pictures:
            sys.stdout.write(half_blocks(picture.pixels, colours=shown) + "\n")


@contextlib.contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal; gives a function of (done, all)."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def complain(sentence: str) -> None:
    """One line on standard error, whatever names of files it quotes: control characters escaped, long words cut."""
    sentence = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    sentence = re.sub(r"\S{161,}", lambda word: f"{word[0][:80]}...{word[0][-70:]}", sentence)
    try:
        sys.stderr.write(f"sensorium: {sentence}\n")
        sys.stderr.flush()
    except OSError:
        pass


def guard(command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 0 done, 1 the work failed, 2 the call is wrong, 130 interrupted, 143
    terminated (what was begun is cleaned up first).

    Whatever happens, standard error gets one sentence and no traceback, unless SENSORIUM_DEBUG is set.
    """
    if sys.stderr is None:  # closed: complaints have nowhere to go, and that is no reason to fail
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        complain("Standard output is closed, so the result would have nowhere to go; redirect it to a file.")
        return 1
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character shows ? and does not end the program
        sys.stdout.reconfigure(errors="replace")
    stdout = sys.stdout
    sys.stdout = cast(TextIO, Output(stdout))
    before = None
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        before = signal.signal(signal.SIGTERM, _terminated)
    try:
        code = command()
        write("")
        return code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except SensoriumError as error:
        complain(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader has gone, as in `sensorium ask ... | head -1`
        _silence_stdout()
        return 1
    except Unwritable as error:
        _silence_stdout()
        complain(f"Standard output cannot be written ({error}); redirect it to a disk that has room.")
        return 1
    except MemoryError:
        complain("The machine ran out of memory; close other programs, or use a smaller picture or model.")
        return 1
    except Exception as error:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        complain(f"Something unforeseen went wrong ({type(error).__name__}: {reason}); SENSORIUM_DEBUG=1 shows where.")
        return 1
    finally:
        sys.stdout = stdout
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Unwind as Ctrl-C does, so that files that were begun are removed."""
    raise SystemExit(128 + number)


def _silence_stdout() -> None:
    """Keep the interpreter from complaining about the closed pipe when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
