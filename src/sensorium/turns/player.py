"""The loudspeaker, through a program that plays.

Sound is handed over in blocks of 40 ms, at most `LEAD_S` ahead of what is due, whatever the program would take: so an
interruption is heard at once, and how much was played is known.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.turns import programs

LEAD_S = 0.2
LATENCY_S = 0.1
"""What the device holds back of what it was given: so much less is reported as played."""
ALL = 1 << 62
"""More samples than any answer has."""
_BLOCK_S = 0.04
_PATIENCE_S = 5.0


def command(rate: int) -> list[str]:
    """What plays sound of this rate. Raises SensoriumError where nothing is installed that does."""
    found = programs.find(programs.PLAYERS, rate)
    if found is None:
        known = ", ".join(programs.PLAYERS)
        raise SensoriumError(f"No program that plays sound is installed ({known}), so answers are shown only.")
    return found


class Player:
    """Plays one answer after the other; the program runs while there is one.

    Args:
        rate: samples a second.
        played: is told (turn, samples played so far), in a thread of the player's; `ALL` at the end.
        failed: is told why the program ended by itself; the answer then counts as played.

    Raises:
        SensoriumError: no program that plays is installed.
    """

    def __init__(self, rate: int, played: Callable[[int, int], None], failed: Callable[[SensoriumError], None]) -> None:
        self._command, self._rate, self._told, self._failed = command(rate), rate, played, failed
        self._queue: deque[np.ndarray] = deque()
        self._turn = 0
        self._open = self._whole = self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="player", daemon=True)
        self._thread.start()

    def begin(self, turn: int) -> None:
        """An answer is about to be spoken."""
        with self._changed:
            self._hush()
            self._turn, self._open, self._whole = turn, True, False
            self._changed.notify_all()

    def play(self, turn: int, samples: np.ndarray) -> None:
        """The next sound of it, float32 [n]; never waits."""
        with self._changed:
            if self._current(turn):
                size = round(_BLOCK_S * self._rate)
                self._queue.extend(np.split(samples, range(size, len(samples), size)))
                self._changed.notify_all()

    def finish(self, turn: int) -> None:
        """All of it has come."""
        with self._changed:
            self._whole = self._whole or turn == self._turn
            self._changed.notify_all()

    def stop(self) -> None:
        """Be silent; never waits."""
        with self._changed:
            self._hush()
            self._changed.notify_all()

    def close(self) -> None:
        """Be silent, and end the thread."""
        with self._changed:
            self._closed = True
            self._hush()
            self._changed.notify_all()
        self._thread.join()

    def _hush(self) -> None:
        self._open = False
        self._queue.clear()
        if self._process:  # killed: it must not play what it holds, and a thread that writes to it wakes up
            self._process.kill()

    def _current(self, turn: int) -> bool:
        return self._open and self._turn == turn

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._open)
                if self._closed:
                    return
                turn = self._turn
            self._answer(turn)

    def _answer(self, turn: int) -> None:
        with self._changed:
            complaint: SensoriumError | None = None
            try:
                process = self._process = programs.begin(self._command, records=False)
            except SensoriumError as error:
                process, complaint = None, error
        if process:
            complaint = self._play(turn, process)
        with self._changed:
            if complaint and self._current(turn):
                self._failed(complaint)
            self._changed.wait_for(lambda: self._whole or not self._current(turn))
            if not self._current(turn):
                return
            self._open = False
        self._told(turn, ALL)

    def _play(self, turn: int, process: subprocess.Popen[bytes]) -> SensoriumError | None:
        """Play an answer to its end, or until it is stopped; what went wrong."""
        assert process.stdin is not None and process.stderr is not None
        self._write(turn, process.stdin)
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(_PATIENCE_S)  # it plays what it has, and ends
        except subprocess.TimeoutExpired:
            code = 0
        with self._changed:
            self._process = None
        programs.end(process)
        why = programs.reason(process.stderr.read())
        programs.shut(process)
        return (
            SensoriumError(f"{Path(self._command[0]).name} does not play ({why}); answers are shown only.")
            if code
            else None
        )

    def _write(self, turn: int, pipe: IO[bytes]) -> None:
        """Hand the sound of an answer over as it is due."""
        began = 0.0  # when the first sample would have been played, had there been no gap
        written = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._current(turn) or self._queue or self._whole)
                if not self._current(turn) or not self._queue:
                    return
                block = self._queue.popleft()
            began = max(began, time.monotonic() - written / self._rate)  # later, where the program has run dry
            try:
                pipe.write(programs.to_pcm(block))
            except OSError:
                return
            written += len(block)
            early = began + written / self._rate - LEAD_S - time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: not self._current(turn), max(0.0, early))
            heard = int((time.monotonic() - began - LATENCY_S) * self._rate)
            self._told(turn, max(0, min(written, heard)))
