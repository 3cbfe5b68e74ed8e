"""Timed words -> subtitles that keep the rules of `cue_rules`.

Two steps. Where cues end and lines break is chosen for the whole text at once, by dynamic programming over a cost of
every possible cue: breaks where people read on easily, in pauses, and time enough to read. Then each cue is given its
time: it begins with its first word, stands as long as it must be read, and where speech is too fast for that it runs
on into the next pause, the following cues coming late. Only beyond `LATEST` does the reading speed give way (nobody
can follow text that is further from the voice), and the conformity report says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sensorium.tasks.cue_rules import GAP, LINE, LONGEST, SHORTEST, Cue, badness, needed

LATEST = 3000
"""Milliseconds that a cue may come after its words."""

_LINGER = 500  # ms that a cue stays after its last word where nothing follows: 12 frames
_PAUSE = 300  # ms between words that make a good place for a break
_SILENCE = 1500  # ms between words over which no cue reaches


@dataclass(frozen=True)
class Timed:
    """A word: its text, without spaces, and when it is spoken, in milliseconds."""

    text: str
    start: int
    end: int


def to_cues(words: Iterable[tuple[str, float, float]], until: float | None = None) -> list[Cue]:
    """Subtitles of words (text, start and end in seconds), in the order in which they are spoken.

    All of the text is kept, in its order; words longer than a line are cut. Times that run backwards are put right.

    Args:
        words: as above. White space within a text parts words.
        until: the end of the medium in seconds, if the last cue should not outlast it.
    """
    timed = _clean(words)
    cues: list[tuple[int, int]] = []
    begin = 0
    for i in range(1, len(timed) + 1):
        if i == len(timed) or timed[i].start - timed[i - 1].end > _SILENCE:
            cues += [(begin + a, begin + b) for a, b in _segment(timed[begin:i])]
            begin = i
    return _schedule(timed, cues, None if until is None else int(1000 * until))


def _clean(words: Iterable[tuple[str, float, float]]) -> list[Timed]:
    """Words of at most a line, in order of time."""
    found: list[Timed] = []
    latest = 0
    for text, start, end in words:
        pieces = [
            piece[i : i + LINE]
            for piece in "".join(c if c.isprintable() else " " for c in text).split()
            for i in range(0, len(piece), LINE)
        ]
        begin = max(latest, _milliseconds(start, latest))
        length = max(0, _milliseconds(end, begin) - begin)
        for number, piece in enumerate(pieces):
            first, last = (begin + length * place // len(pieces) for place in (number, number + 1))
            found.append(Timed(piece, first, last))
            latest = first
    return found


def _milliseconds(seconds: float, otherwise: int) -> int:
    return round(1000 * seconds) if math.isfinite(seconds) and seconds >= 0 else otherwise


# Where to break
# ----------------------------------------------------------------------------------------------------------------------


def _segment(words: Sequence[Timed]) -> list[tuple[int, int]]:
    """The cheapest way to part words into cues: (first, behind the last) of each."""
    count = len(words)
    breaks = [0, *(badness(words[i - 1].text, words[i].text) for i in range(1, count)), 0]
    lengths = [0, *accumulate(len(word.text) + 1 for word in words)]
    best, origin = [0.0] + [math.inf] * count, [0] * (count + 1)
    for last in range(1, count + 1):
        for first in range(last - 1, -1, -1):
            characters = lengths[last] - lengths[first] - 1
            if characters > 2 * LINE + 1:
                break
            if last - first > 1 and words[last - 1].end - words[first].start > LONGEST:
                break
            inner = _line_break(lengths, breaks, first, last)
            if inner is None:
                continue
            cost = best[first] + _cost(words, breaks, first, last, characters)
            if inner:
                cost += 0.5 * breaks[inner]
            if cost < best[last]:
                best[last], origin[last] = cost, first
    found = []
    while count:
        found.append((origin[count], count))
        count = origin[count]
    return found[::-1]


def _cost(words: Sequence[Timed], breaks: Sequence[int], first: int, last: int, characters: int) -> float:
    """What a cue of the words from `first` to before `last` costs, its line break aside."""
    cost = 1.0 + 0.15 * max(0, 20 - characters)
    time = needed(characters)
    if last < len(words):
        pause = words[last].start - words[last - 1].end
        cost += breaks[last] * (0.3 if pause >= _PAUSE else 1.0)
        room = words[last].start - words[first].start - GAP
    else:
        room = words[last - 1].end - words[first].start + _SILENCE
    cost += 0.02 * max(0, time - room)
    for i in range(first + 1, last):
        pause = words[i].start - words[i - 1].end
        if pause >= _PAUSE:
            cost += pause / 150 if breaks[i] <= 1 else pause / 300
    return cost


def _line_break(lengths: Sequence[int], breaks: Sequence[int], first: int, last: int) -> int | None:
    """The word that begins the second line; 0 for a single line; None where two lines are not enough."""
    if lengths[last] - lengths[first] - 1 <= LINE:
        return 0
    found, least = None, math.inf
    for i in range(first + 1, last):
        upper, lower = lengths[i] - lengths[first] - 1, lengths[last] - lengths[i] - 1
        if upper <= LINE and lower <= LINE:
            # even lines are read faster, a longer lower one hides less of the picture
            uneven = abs(upper - lower) / 10 + (0.5 if upper > lower else 0)
            if breaks[i] + uneven < least:
                found, least = i, breaks[i] + uneven
    return found


# When to show
# ----------------------------------------------------------------------------------------------------------------------


def _schedule(words: Sequence[Timed], parts: Sequence[tuple[int, int]], until: int | None) -> list[Cue]:
    """Times of the cues, each no earlier than its words."""
    lengths = [0, *accumulate(len(word.text) + 1 for word in words)]
    breaks = [0, *(badness(words[i - 1].text, words[i].text) for i in range(1, len(words))), 0]
    cues: list[Cue] = []
    free = 0  # when the next cue may begin
    for number, (first, last) in enumerate(parts):
        spoken = words[first].start
        start = max(free, spoken)
        time = needed(lengths[last] - lengths[first] - 1)
        following = words[parts[number + 1][0]].start if number + 1 < len(parts) else None
        end = max(start + time, min(words[last - 1].end + _LINGER, start + LONGEST))
        if following is not None and end > following - GAP:
            end = max(start + time, following - GAP)
            if end > following - GAP + LATEST:  # too fast for too long: the reading speed gives way
                end = max(start + SHORTEST, following - GAP + LATEST)
        elif following is None and until is not None and end > until:
            end = max(start + time, until)
            back = min(end - until, start - free)  # into the pause before it, if there is one
            start, end = start - back, end - back
        inner = _line_break(lengths, breaks, first, last)
        texts = [word.text for word in words[first:last]]
        lines = (texts,) if not inner else (texts[: inner - first], texts[inner - first :])
        cues.append(Cue(start, end, tuple(" ".join(line) for line in lines), spoken))
        free = end + GAP
    return cues
