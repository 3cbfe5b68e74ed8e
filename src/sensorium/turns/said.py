"""What of an answer was heard: samples played -> units -> words.

Three things are known while an answer is spoken: how much text had come when units came (`read`), where each chunk of
units ends in the sound (`chunks`), and how many samples were played. A word counts as heard when its last unit was
played. Where several words share their units' arrival (a cascade says whole sentences), the space units between them
tell them apart, or, if they do not match, the words' letters; within a chunk time is spread evenly over its units.
Both err on the side of fewer words.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

_WORD = re.compile(r"\S+")


class Speaker(Protocol):
    """What says an answer while it is generated (`speech.Spoken`, `speech.Cascade`).

    Attributes:
        units: all units so far.
        chunks: behind each chunk of units that is sound by now, (units, samples) of the answer so far.
    """

    @property
    def units(self) -> Sequence[int]: ...
    @property
    def chunks(self) -> Sequence[tuple[int, int]]: ...


class Said:
    """One answer.

    Args:
        speaker: says it; None where it is only shown, and then all that was shown counts as heard.
        space: the unit between two words, where the generator has one.

    Attributes:
        text: all of it so far.
        samples: of sound so far.
        complete: nothing more will come.
    """

    def __init__(self, speaker: Speaker | None = None, space: int | None = None) -> None:
        self.text = ""
        self.samples = 0
        self.complete = False
        self._speaker, self._space = speaker, space
        self._marks = [(0, 0)]  # (characters, units): so much text was certainly turned into so many units
        self._last = 0  # where the last piece of text begins

    def read(self, piece: str) -> None:
        """A piece of text has come. The units so far are those of all pieces before it.

        A speaker knows that a word is over when it sees the token behind it, so what units have just come for ends
        where the piece before this one begins.
        """
        self._mark(self._last)
        self._last = len(self.text)
        self.text += piece

    def sound(self, count: int) -> None:
        """So many samples have come, before the next piece of text."""
        self._mark(self._last)
        self.samples += count

    def finish(self) -> None:
        """The answer is complete, and so are its units."""
        units = len(self._speaker.units) if self._speaker else 0
        while len(self._marks) > 1 and self._marks[-1][1] == units:  # it was said of less text
            self._marks.pop()
        self._mark(len(self.text))
        self.complete = True

    def heard(self, samples: int) -> str:
        """The words of which all sound lies within the first so many samples."""
        if self._speaker is None or (self.complete and samples >= self.samples):
            return self.text
        end = 0
        for word, last in self.ends():
            if last > samples:
                break
            end = word
        return self.text[:end]

    def ends(self) -> list[tuple[int, float]]:
        """(end in the text, the sample behind its sound) of each word whose units have come; infinite before their
        sound has."""
        return [(end, self._sample(units)) for end, units in self._words()]

    def _mark(self, characters: int) -> None:
        units = len(self._speaker.units) if self._speaker else 0
        if units > self._marks[-1][1]:  # without new units nothing has become certain
            self._marks.append((characters, units))

    def _words(self) -> list[tuple[int, float]]:
        """(end in the text, units that must have been played) of each word whose units have all come."""
        found: list[tuple[int, float]] = []
        words = [(match.end(), match[0]) for match in _WORD.finditer(self.text)]
        for (begin, first), (end, last) in pairwise(self._marks):
            inside = [(at, word) for at, word in words if begin < at <= end]
            spoken = [word for _, word in inside if any(map(str.isalnum, word))]
            ends = self._ends(spoken, first, last)
            at = 0
            for place, word in inside:
                at += any(map(str.isalnum, word))
                found.append((place, ends[at - 1] if at else first))
        return found

    def _ends(self, words: list[str], first: int, last: int) -> list[float]:
        """Behind which unit each of these words ends, given that they share the units from `first` to `last`."""
        if not words:
            return []
        units = self._speaker.units[first:last] if self._speaker else []
        ends = [first + i for i, (a, b) in enumerate(pairwise(units), 1) if a != self._space and b == self._space]
        if not units or units[-1] != self._space:
            ends.append(last)
        if self._space is None or len(ends) != len(words):
            sizes = list(accumulate(len(word) for word in words))
            return [first + (last - first) * size / sizes[-1] for size in sizes]
        return [float(end) for end in ends]

    def _sample(self, units: float) -> float:
        """The sample behind so many units; infinite where they are no sound yet."""
        chunks = [(0, 0), *(self._speaker.chunks if self._speaker else ())]
        at = bisect_left([count for count, _ in chunks], units)
        if at == len(chunks):
            return float("inf")
        if at == 0:
            return 0.0
        (before, start), (after, end) = chunks[at - 1], chunks[at]
        return start + (end - start) * (units - before) / (after - before)
