"""The sound of the user, kept as long as it may be needed: a little while nobody speaks, all of it while somebody
does."""

from __future__ import annotations

from collections import deque

import numpy as np


class Recording:
    """Frames of a stream, addressed by the samples of the stream.

    Attributes:
        begin: the first sample that is still there.
        end: the sample behind the last.
    """

    def __init__(self, start: int = 0) -> None:
        self.begin = self.end = start
        self._frames: deque[np.ndarray] = deque()

    def add(self, frame: np.ndarray) -> None:
        """The next frame, float32 [n]."""
        self._frames.append(frame)
        self.end += len(frame)

    def forget(self, before: int) -> None:
        """Let go of frames that lie before a sample, whole."""
        while self._frames and self.begin + len(self._frames[0]) <= before:
            self.begin += len(self._frames.popleft())

    def cut(self, begin: int, end: int) -> np.ndarray:
        """float32 [n] from one sample to another, as far as it is there."""
        if not self._frames:
            return np.zeros(0, np.float32)
        joined = np.concatenate(self._frames)
        return joined[max(0, begin - self.begin) : max(0, end - self.begin)]
