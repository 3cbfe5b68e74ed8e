"""The microphone, through a program that records."""

from __future__ import annotations

import select
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.turns import programs
from sensorium.turns.activity import RATE

_BLOCK = RATE // 50 * 2  # bytes: 20 ms


class Microphone:
    """Records when asked to, and has no program running otherwise.

    Args:
        wait_s: how long the program may take until its first sound.

    Raises:
        SensoriumError: there is no program that records, or it finds no microphone.
    """

    def __init__(self, wait_s: float = 5.0) -> None:
        command = programs.find(programs.RECORDERS, RATE)
        if command is None:
            known = ", ".join(programs.RECORDERS)
            raise SensoriumError(
                f"No program that records is installed ({known}), so there is no microphone; type your messages."
            )
        self._command, self._wait_s = command, wait_s
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        process, _ = self._open()
        programs.end(process)
        programs.shut(process)

    def start(self, sink: Callable[[np.ndarray], None], failed: Callable[[SensoriumError], None]) -> None:
        """Record: `sink` takes float32 [n] at 16 kHz, in a thread, from the moment this returns. `failed` is told once
        if the program ends by itself.

        Raises:
            SensoriumError: the microphone has gone.
        """
        self._process, first = self._open()
        self._reader = threading.Thread(
            target=self._read, args=(self._process, first, sink, failed), name="microphone", daemon=True
        )
        self._reader.start()

    def stop(self) -> None:
        """End the recording; all that was recorded has gone to the sink when this returns."""
        process, self._process = self._process, None
        if process:
            programs.end(process)
        if self._reader and self._reader is not threading.current_thread():
            self._reader.join()

    def _open(self) -> tuple[subprocess.Popen[bytes], bytes]:
        """The running program, and the first sound that it gave."""
        process = programs.begin(self._command, records=True)
        assert process.stdout is not None and process.stderr is not None
        ready, _, _ = select.select([process.stdout], [], [], self._wait_s)
        first = process.stdout.read(_BLOCK) if ready else b""
        if first:
            return process, first
        programs.end(process)
        why = programs.reason(process.stderr.read()) if ready else f"no sound within {self._wait_s:g} seconds"
        programs.shut(process)
        raise SensoriumError(f"{Path(self._command[0]).name} finds no microphone ({why}); type your messages.")

    def _read(
        self,
        process: subprocess.Popen[bytes],
        data: bytes,
        sink: Callable[[np.ndarray], None],
        failed: Callable[[SensoriumError], None],
    ) -> None:
        assert process.stdout is not None and process.stderr is not None
        # Its complaints are read as well, so that a program that writes many does not stand still.
        said: list[bytes] = []
        listener = threading.Thread(target=_gather, args=(process.stderr, said), name="microphone", daemon=True)
        listener.start()
        rest = b""
        while data:
            rest += data
            whole = len(rest) // 2 * 2
            sink(programs.from_pcm(rest[:whole]))
            rest = rest[whole:]
            data = process.stdout.read(_BLOCK)
        process.wait()
        listener.join()
        programs.shut(process)
        if self._process is process:
            self._process = None
            why = programs.reason(b"".join(said))
            failed(SensoriumError(f"{Path(self._command[0]).name} stopped recording ({why}); type your messages."))


def _gather(stream: IO[bytes], into: list[bytes]) -> None:
    tail = b""
    while data := stream.read(4096):
        tail = (tail + data)[-4096:]
        into[:] = [tail]
