"""What every speech generator declares: the discrete units that it takes, and where a stream of them may be cut.

The set of units is the seam to the output projector: its fingerprint covers the units in their order and the
generator's weights, so a projector trained for other units, or for the same in another order, is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
BLANK = 0
"""The number that stands for no unit in the logits of a CTC projector; units count from 1."""


@dataclass(frozen=True)
class UnitSpec:
    """The units that a generator takes.

    Attributes:
        symbols: a name for each: phonemes, or "0", "1", ... of clusters. Unit `k` (from 1) is `symbols[k - 1]`.
        weights: sha256 of what turns them into sound.
    """

    symbols: tuple[str, ...]
    weights: str = ""

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def fingerprint(self) -> str:
        """A sha256 over the symbols in their order and the generator's weights."""
        return hashlib.sha256("\0".join([self.weights, *self.symbols]).encode()).hexdigest()


class SpeechGenerator(Protocol):
    """Units -> sound.

    Attributes:
        units: what it takes.
        rate: samples a second of what it gives.

    It may say by `first`, a number, that no chunk is cut within an utterance's first so many units, as long as they
    are letters and spaces: then the units of a beginning may come together (`speech.Spoken`).
    """

    units: UnitSpec
    rate: int

    def generate(self, units: Sequence[int], index: int = 0) -> Samples:
        """Sound float32 [samples], within -1 to 1, of a chunk of units (1 to `len(self.units)`); nothing for none.

        The same units and `index` (the chunk's number in its stream) always give the same samples.
        """

    def cut(self, units: Sequence[int], first: bool) -> int:
        """How many of the units that have come so far make a chunk now; 0 to wait for more.

        The answer for a sequence of units must not depend on how many more have come behind the cut: only then is
        streamed speech cut where whole speech is.
        """


class TextFront(Protocol):
    """A generator that can also be given text: the cascade, and what output projectors learn from.

    Attributes:
        space: the unit that stands between two words and two sentences.
    """

    space: int

    def units_of(self, text: str) -> list[int]:
        """The units of a text; none for a text with nothing to say."""
