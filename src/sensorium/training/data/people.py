"""Recordings of people speaking English, with what they say, to learn listening from.

Actors of an adventure game of 1995 say its dialogues, which are its subtitles too. The evaluation has recordings from
elsewhere (`evaluation.human_voices`); no text repeats one of those or a held-out question. What is no plain sentence is
left out: shouts, the talk of apes and parrots, codes, digits (who knows how they were read?), and the clips that
`people_left_out.txt` names: of a seventh that was checked, those in which Whisper tiny.en heard at most half of the
words, and all that last longer than 0.3 s a letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sensorium import hub
from sensorium.training.data import amazon_queen, spoken, spoken_questions, voices

PACKAGES = {
    "adventure": hub.Part(
        "deb:flight-of-the-amazon-queen=1.0.0-9",
        "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c",
        "40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
        34859620,
        "LicenseRef-Flight-of-the-Amazon-Queen",
    ),
}
"""The licence of the game lets anybody copy, change and pass it on, free of charge or within a larger collection; the
game by itself may not be sold, and a changed one must say so."""
WORDS = range(2, 19)
"""How many words a recording may have."""
LEFT_OUT = Path(__file__).with_name("people_left_out.txt")

_INITIALS = ("I", "ID", "IQ", "TV", "OK", "UFO")
_MARKS = (
    (r"\^_|@@", ""),  # the game's signs for a trade mark and for a heart
    (r"[\"]", ""),
    (r"\s*\.\.+\s*(?=[a-zA-Z'])", ", "),
    (r"\.\.+", "."),
    (r"[?!]*\?[?!]*", "?"),
    (r"!+", "!"),
    (r"\s+", " "),
)


@dataclass(frozen=True)
class Recording:
    """What somebody said, and where it is recorded: in `size` bytes of a file from `begin`."""

    text: str
    path: Path
    speaker: str
    begin: int
    size: int
    engine: ClassVar = "people"

    @property
    def name(self) -> str:
        """The speaker, as of a `voices.Voice`."""
        return self.speaker

    def say(self, text: str) -> NDArray[np.float32]:
        """The sound without the silence around it, as of a `voices.Voice`; nothing but its own text can be said."""
        return voices.trimmed(self.sound())

    def sound(self) -> NDArray[np.float32]:
        """Mono samples at 16 kHz, -1..1.

        Raises:
            SensoriumError: the file is damaged.
        """
        from sensorium.media import load_audio

        with self.path.open("rb") as file:
            file.seek(self.begin)
            return load_audio(file.read(self.size)).samples


def recordings() -> list[Recording]:
    """All recordings of plain sentences, in the order of the files. A sentence may be said several times.

    Raises:
        SensoriumError: a package cannot be fetched.
    """
    path = hub.fetch(PACKAGES["adventure"])
    known = _words().__contains__
    left_out = set(LEFT_OUT.read_text(encoding="utf-8").split())
    found = []
    for line in amazon_queen.lines(path):
        text = sentence(line.text, known)
        if text and line.name not in left_out and not spoken_questions.repeats_a_test(text):
            found.append(Recording(text, path, f"adventure {line.speaker}", line.begin, line.size))
    return found


def sentence(written: str, known: Callable[[str], bool]) -> str:
    """What is really said where a subtitle stands, as a sentence, or "" where nobody can be sure.

    Args:
        written: the subtitle.
        known: whether a word in lower case is a word of English; one in four may be none, as names are.
    """
    text = written
    for pattern, instead in _MARKS:
        text = re.sub(pattern, instead, text)
    text = text.strip(" ,-:.") + (text.rstrip()[-1:] if text.rstrip()[-1:] == "." else "")
    if not re.fullmatch(r"[A-Za-z ,.'!?-]+", text):
        return ""
    said = re.findall(r"[A-Za-z']+", text)
    shouted = [word for word in said if len(word) > 1 and word.isupper() and word not in _INITIALS]
    strange = [word for word in said if not known(word.strip("'").lower())]
    if len(said) not in WORDS or 2 * len(shouted) > len(said) or 4 * len(strange) > len(said):
        return ""
    text = re.sub(r"\b[A-Z]+(?:'[A-Z]+)?\b(?!')", lambda word: _calm(word[0]), text)
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def _calm(word: str) -> str:
    """A word in capitals as it stands in a sentence."""
    if word in _INITIALS:
        return word
    return f"I{word[1:].lower()}" if word.startswith("I'") else word.lower()


@cache
def _words() -> frozenset[str]:
    """Words of English in lower case, with names and short forms."""
    return frozenset(word.lower() for word in spoken.words()) | _SHORT


_SHORT = {"ok", "okay", "gonna", "wanna", "gotta", "ain't", "y'all", "who'd", "that'll", "there'll", "what'll", "it'd"}
