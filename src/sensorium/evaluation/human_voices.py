"""Recordings of people speaking English, with what they say: voices that nothing here was trained on.

Two speakers, from Debian packages: announcements of a telephone exchange (Allison Smith, 8 kHz, CC-BY-SA-3.0) and
sentences of an audio book (LibriVox, 16 kHz, BSD-2-Clause). They are fetched for `sensorium eval speech` alone.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path

from sensorium import hub

PACKAGES = {
    "exchange": hub.Part(
        "deb:asterisk-core-sounds-en-wav=1.6.1-1",
        "usr/share/asterisk/sounds/en_US_f_Allison/*",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        18272864,
        "CC-BY-SA-3.0",
    ),
    "exchange texts": hub.Part(
        "deb:asterisk-core-sounds-en=1.6.1-1",
        "usr/share/doc/asterisk-core-sounds-en/*",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        22844,
        "CC-BY-SA-3.0",
    ),
    "book": hub.Part(
        "deb:pocketsphinx-testdata=0.8+5prealpha+1-15",
        "usr/share/pocketsphinx/test/data/librivox/*",
        "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
        1822580,
        "BSD-2-Clause",
    ),
}
WORDS = range(3, 19)
"""How many words a recording may have: enough to be told from others, few enough for one breath."""


@dataclass(frozen=True)
class Recording:
    """What somebody said, and where it is recorded."""

    text: str
    path: Path
    speaker: str


def recordings() -> list[Recording]:
    """All recordings of whole sentences, by speaker and name.

    Raises:
        SensoriumError: a package cannot be fetched.
    """
    return [*_exchange(), *_book()]


def _exchange() -> list[Recording]:
    files = {path.stem: path for path in _tree("exchange").rglob("en_US_f_Allison/*.wav")}
    text = gzip.decompress(next(_tree("exchange texts").rglob("core-sounds-en.txt.gz")).read_bytes()).decode()
    found = []
    for line in text.splitlines():
        name, _, said = line.partition(": ")
        said = said.strip()
        if name in files and len(said.split()) in WORDS and re.fullmatch(r"[A-Z][A-Za-z',. !?-]+", said):
            found.append(Recording(said if said[-1] in ".!?" else f"{said}.", files[name], "exchange"))
    return sorted(found, key=lambda each: each.path.name)


def _book() -> list[Recording]:
    directory = next(_tree("book").rglob("librivox/transcription")).parent
    found = []
    for line in (directory / "transcription").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"<s> (.+) </s> \((.+)\)", line.strip())
        if match:
            said = match[1][0].upper() + match[1][1:] + "."
            found.append(Recording(said, directory / f"{match[2]}.wav", "book"))
    return found


def _tree(name: str) -> Path:
    part = PACKAGES[name]
    return hub.fetch_tree(part, (part.file,))
