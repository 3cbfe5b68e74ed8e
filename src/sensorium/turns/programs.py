"""The programs of the system that record and play: no library has to be installed, and the sound server's own choice
of device holds. All of them speak raw 16-bit mono samples over a pipe.

`parec` and `pacat` talk to PulseAudio and PipeWire, `arecord` and `aplay` to ALSA, which PipeWire answers too; `rec`
and `play` belong to SoX, which is there for macOS and BSD as well.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable

import numpy as np

from sensorium.errors import SensoriumError

RECORDERS: dict[str, Callable[[int], list[str]]] = {
    "parec": lambda rate: ["--raw", "--format=s16le", f"--rate={rate}", "--channels=1", "--latency-msec=30"],
    "arecord": lambda rate: ["-q", "-t", "raw", "-f", "S16_LE", "-r", f"{rate}", "-c", "1", "--buffer-time=200000"],
    "rec": lambda rate: ["-q", "-t", "raw", "-e", "signed", "-b", "16", "-L", "-r", f"{rate}", "-c", "1", "-"],
}
"""Programs that write what the microphone hears to standard output: name -> arguments for a rate."""

PLAYERS: dict[str, Callable[[int], list[str]]] = {
    "pacat": lambda rate: ["--raw", "--format=s16le", f"--rate={rate}", "--channels=1", "--latency-msec=50"],
    "aplay": lambda rate: ["-q", "-t", "raw", "-f", "S16_LE", "-r", f"{rate}", "-c", "1", "--buffer-time=100000"],
    "play": lambda rate: ["-q", "-t", "raw", "-e", "signed", "-b", "16", "-L", "-r", f"{rate}", "-c", "1", "-"],
}
"""Programs that play standard input."""

_PATIENCE_S = 1.0


def find(programs: dict[str, Callable[[int], list[str]]], rate: int) -> list[str] | None:
    """The command of the first program that is installed."""
    for name, arguments in programs.items():
        path = shutil.which(name)
        if path:
            return [path, *arguments(rate)]
    return None


def begin(command: list[str], *, records: bool) -> subprocess.Popen[bytes]:
    """Start one, away from the terminal: what is typed there, Ctrl-C too, is for us to handle.

    Raises:
        SensoriumError: it does not start.
    """
    piped, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command,
            stdin=nothing if records else piped,
            stdout=piped if records else nothing,
            stderr=piped,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise SensoriumError(f"{command[0]} does not start ({error.strerror}); install it again, or type.") from None


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop one, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shut(process: subprocess.Popen[bytes]) -> None:
    """Close its pipes."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def reason(complaint: bytes) -> str:
    """Why a program failed, from what it wrote to standard error: its last line."""
    lines = complaint.decode("utf-8", "replace").strip().splitlines() or [""]
    return re.sub(r"[^ -~]", "", lines[-1])[:120].strip().rstrip(".") or "it does not say why"


def to_pcm(samples: np.ndarray) -> bytes:
    """float32 within -1 to 1 -> 16-bit little-endian."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def from_pcm(data: bytes) -> np.ndarray:
    """16-bit little-endian -> float32."""
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768
