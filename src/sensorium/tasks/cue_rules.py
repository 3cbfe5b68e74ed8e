"""The rules of readable subtitles, and how far a list of cues keeps them.

Of the TED and IWSLT guidelines (42 characters, two lines) and Netflix's timed text style guide (42 characters, two
lines, 5/6 to 7 seconds, 20 characters a second for adults, two frames between cues).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LINE = 42
LINES = 2
SHORTEST = 834  # ms: 5/6 of a second
LONGEST = 7000  # ms
SPEED = 20  # characters a second, spaces included
GAP = 84  # ms: two frames of 24 a second

RULES = ("lines", "characters", "short", "long", "speed", "gap")
"""What `conformity` counts: more lines, longer lines, too short, too long, too fast to read, too close to the last."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONJUNCTIONS = _words(
    "and but or nor so yet because although though while whereas if unless until when where who which that as than "
    "since after before whether however therefore then"
)
_PREPOSITIONS = _words(
    "of to in on at by for with from into onto about above across against along among around behind below beneath "
    "beside between beyond during inside near over through toward towards under upon within without"
)
_LEADING = _words(
    "a an the this that these those my your his her its our their no every each some any is are was were be been am "
    "has have had do does did will would can could shall should may might must not very more most i you he she it we "
    "they mr mrs ms dr st"
)


@dataclass(frozen=True)
class Cue:
    """A subtitle.

    Attributes:
        start, end: in milliseconds.
        lines: one or two, without line ends.
        spoken: when its first word is spoken, in milliseconds; ``start`` where nobody knows.
    """

    start: int
    end: int
    lines: tuple[str, ...]
    spoken: int | None = None

    @property
    def text(self) -> str:
        """Its words on one line."""
        return " ".join(self.lines)

    @property
    def late(self) -> int:
        """Milliseconds that it comes after its words."""
        return 0 if self.spoken is None else max(0, self.start - self.spoken)


def needed(characters: int) -> int:
    """Milliseconds that a cue of so many characters must stand at least."""
    return max(SHORTEST, math.ceil(1000 * characters / SPEED))


def badness(before: str, after: str) -> int:
    """How bad a break between two words is: 0 after a sentence, 1 after a comma, 2 before a conjunction, 3 before a
    preposition, 5 anywhere, 8 between words that belong together."""
    end = before.rstrip("\"'”’»)]")
    if end.endswith((".", "?", "!", "…", "。", "？", "！")):
        return 0
    if end.endswith((",", ";", ":", "—", "–", "，", "、", "；")):
        return 1
    last, first = _plain(before), _plain(after)
    if last in _LEADING or last in _PREPOSITIONS or last in _CONJUNCTIONS:
        return 8
    return 2 if first in _CONJUNCTIONS else 3 if first in _PREPOSITIONS else 5


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word).lower()


def broken_rules(cue: Cue, previous: Cue | None = None) -> list[str]:
    """The rules (of `RULES`) that a cue does not keep."""
    length, characters = cue.end - cue.start, len(cue.text)
    kept = {
        "lines": 1 <= len(cue.lines) <= LINES,
        "characters": all(0 < len(line) <= LINE for line in cue.lines),
        "short": length >= SHORTEST,
        "long": length <= LONGEST,
        "speed": 1000 * characters <= SPEED * length,
        "gap": previous is None or cue.start - previous.end >= GAP,
    }
    return [rule for rule in RULES if not kept[rule]]


@dataclass(frozen=True)
class Conformity:
    """How far cues keep the rules.

    Attributes:
        cues: their number.
        conforming: of those, how many keep every rule.
        broken: cues that break a rule, by its name.
        breaks: line breaks and ends of cues within a sentence, and how many of these stand at a punctuation mark or
            before a conjunction or preposition: a preference, not a rule.
        latest: seconds by which a cue comes after its words at most (speech faster than the rules allow).
        first: number (from 1), time in seconds and rules of the first cues that do not conform.
    """

    cues: int
    conforming: int
    broken: dict[str, int]
    breaks: tuple[int, int]
    latest: float
    first: list[tuple[int, float, list[str]]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        share = self.conforming / self.cues if self.cues else 1.0
        made, well = self.breaks
        offenders = [{"cue": number, "start_s": start, "rules": rules} for number, start, rules in self.first]
        return {
            "cues": self.cues, "conforming": self.conforming, "share": round(share, 4), "broken": self.broken,
            "breaks": made, "good_breaks": well, "latest_s": self.latest, "offenders": offenders,
        }  # fmt: skip

    def __str__(self) -> str:
        made, well = self.breaks
        share = f"{100 * self.conforming / self.cues:.1f} %" if self.cues else "no cues"
        lines = [f"{self.conforming} of {self.cues} cues conform ({share})"]
        limits = {
            "lines": f"at most {LINES} lines", "characters": f"at most {LINE} characters a line",
            "short": "at least 5/6 s", "long": f"at most {LONGEST / 1000:g} s",
            "speed": f"at most {SPEED} characters a second", "gap": "at least 2 frames between cues",
        }  # fmt: skip
        lines += [f"  {limits[rule]}: {self.cues - self.broken[rule]} of {self.cues}" for rule in RULES]
        lines.append(f"  breaks at punctuation or before a conjunction or preposition: {well} of {made}")
        lines.append(f"  latest cue: {self.latest:.2f} s after its words")
        lines += [f"  cue {number} at {start:.2f} s: {', '.join(rules)}" for number, start, rules in self.first]
        return "\n".join(lines)


def conformity(cues: Sequence[Cue]) -> Conformity:
    """Measure cues in the order of their numbers."""
    counts, offenders = Counter[str](), []
    made = well = 0
    for number, cue in enumerate(cues):
        rules = broken_rules(cue, cues[number - 1] if number else None)
        counts.update(rules)
        if rules:
            offenders.append((number + 1, cue.start / 1000, rules))
        following = [cues[number + 1].lines[0]] if number + 1 < len(cues) else []
        for line, after in zip(cue.lines, [*cue.lines[1:], *following]):
            made, well = made + 1, well + (badness(line.split(" ")[-1], after.split(" ")[0]) <= 3)
    return Conformity(
        len(cues),
        len(cues) - len(offenders),
        {rule: counts[rule] for rule in RULES},
        (made, well),
        max((cue.late for cue in cues), default=0) / 1000,
        offenders[:10],
    )
