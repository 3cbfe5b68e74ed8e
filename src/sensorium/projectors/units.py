"""Runs a trained output projector at inference, token by token, with its cache: the ONNX twin that training writes.

No torch. A token costs the same wherever it stands: layers run once for it, over a cache of a fixed window.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SensoriumError
from sensorium.generators.base import BLANK
from sensorium.projectors.spelling import END, Spelling
from sensorium.sessions import trained_session

Floats = NDArray[np.float32]
_INPUTS = {"states": 3, "embeds": 3, "before": 3, "letters": 3, "past": 6, "start": 1}
_OUTPUTS = {"logits": 4, "present": 6}


class UnitProjector:
    """Hidden states and tokens -> units.

    Args:
        path: the ONNX file (see `training.speak_export`).
        threads: ONNX Runtime threads.

    Attributes:
        dim: width of the LLM whose states it takes.
        letters: how many letters of the text it reads.
        units: how many units it knows.
        upsample: slots a token.

    Raises:
        SensoriumError: the file is missing, no ONNX file, or has other inputs and outputs.
    """

    def __init__(self, path: Path, threads: int | None = 1) -> None:
        self.path = path
        self._session = trained_session(path, "not an output projector", threads)
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        ranks = [{name: len(shape) for name, shape in side.items()} for side in (inputs, outputs)]
        if ranks != [_INPUTS, _OUTPUTS]:
            raise SensoriumError(
                f"{path}: an output projector has the inputs {', '.join(_INPUTS)} and the outputs "
                f"{', '.join(_OUTPUTS)}, this file has {', '.join([*inputs, *outputs])}; export it again."
            )
        self._past = [size if isinstance(size, int) else 0 for size in inputs["past"]]
        sizes = [inputs["states"][2], inputs["letters"][2], *outputs["logits"][2:]]
        if not all(isinstance(size, int) for size in sizes):
            raise SensoriumError(
                f"{path}: the width, the letters, the slots and the units must be fixed; export it again."
            )
        self.dim, self.letters, self.upsample, self.units = sizes[0], sizes[1], sizes[2], sizes[3] - 1

    def stream(self) -> UnitStream:
        """A new utterance."""
        return UnitStream(self)

    def run(
        self,
        states: Floats,
        embeds: Floats,
        before: Floats,
        letters: NDArray[np.int64],
        past: Floats | None,
        start: int,
    ) -> tuple[Floats, Floats]:
        """Logits [n, upsample, units + 1] of n frames [n, dim] with letters [n, letters], and the cache after them."""
        feeds = {
            "states": states[None],
            "embeds": embeds[None],
            "before": before[None],
            "letters": letters[None],
            "past": np.zeros(self._past, np.float32) if past is None else past,
            "start": np.array([start], np.int64),
        }
        logits, present = self._session.run(["logits", "present"], feeds)
        if not np.isfinite(logits).all():
            raise SensoriumError(
                f"{self.path} gives values that are not finite; its weights are damaged, train or fetch it again."
            )
        return logits[0], present


class UnitStream:
    """One utterance: `push` each token as it is generated, `flush` behind the last.

    The position convention: a token comes with the state that it was chosen from (`engine.Step.hidden`: what has read
    everything before the token, and not the token) and with its own embedding. Training lays frames out the same way
    (`training.speak_task.frames_of`).
    """

    def __init__(self, projector: UnitProjector) -> None:
        self._projector = projector
        self._past: Floats | None = None
        self._frames = 0
        self._held: list[tuple[Floats, Floats, Floats, NDArray[np.int64]]] = []
        self._before = np.zeros(projector.dim, np.float32)
        self._spelling = Spelling(projector.letters)
        self._last = BLANK

    def push(self, hidden: Floats | None, embed: Floats, piece: str, *, wait: bool = False) -> list[int]:
        """The units that a token adds, and those before it that waited.

        Args:
            hidden: float32 [dim], the state that the token was chosen from; None where there is none.
            embed: float32 [dim], the token's row of the embedding table.
            piece: the token's text.
            wait: the units are not needed yet. Several tokens together take hardly longer than one, since the time goes
                into reading the weights.
        """
        embed = np.asarray(embed, np.float32).reshape(-1)
        state = np.zeros_like(embed) if hidden is None else np.asarray(hidden, np.float32).reshape(-1)
        letters = self._spelling.push(piece)
        self._held.append((state, embed, self._before, letters))
        self._before = embed
        if wait:
            return []
        states, embeds, before, spelt = (np.stack(column) for column in zip(*self._held))
        logits, self._past = self._projector.run(states, embeds, before, spelt, self._past, self._frames)
        self._frames += len(self._held)
        self._held.clear()
        return self._collapse(logits.reshape(-1, logits.shape[-1]).argmax(axis=-1))

    def flush(self, end: Floats) -> list[int]:
        """What is left, given the embedding of the end-of-turn token."""
        return self.push(None, end, END)

    def _collapse(self, best: NDArray[np.intp]) -> list[int]:
        """CTC's rule: repeats merge, also across tokens, and blanks go."""
        units = []
        for unit in best.tolist():
            if unit not in (self._last, BLANK):
                units.append(unit)
            self._last = unit
        return units
