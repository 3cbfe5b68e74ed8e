"""Subtitles of an hour of speech: time, memory, conformity, word errors, beside faster-whisper used plainly.

    python benchmarks/subtitles.py [--minutes 60] [--peer-minutes 10] [--model tiny.en] [--keep FILE.wav]

The speech is made here: a synthetic voice (hibari, at changing speeds) reads the plain sentences of this repository's
pages, over and over in changing order, and in between a person speaks (Allison Smith's telephone prompts of Debian's
`asterisk-core-sounds-en-wav`, CC-BY-SA-3.0, with their transcripts), with pauses of 0.2 to 4 seconds and a little noise
behind. Sentences with digits are left out, since nothing here decides how a number is spelt.

Each measurement is a process of its own: `sensorium subtitle FILE -o OUT.srt --json` on the whole, on its first
`--peer-minutes` (memory should be the same: that is what flat means) and on the person alone; and on those first
minutes the peer: the same model and arithmetic through `WhisperModel.transcribe(FILE, vad_filter=True,
word_timestamps=True)`, each of its segments one cue wrapped at 42 characters, as most scripts write them. Memory is
`ru_maxrss`; processor seconds are those of all threads. The last line is JSON. Needs the extra `speech`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import sys
import tempfile
import textwrap
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import Run, run

RATE = 16_000
ROOT = Path(__file__).parents[1]
PROMPTS = {
    "*.wav": (
        "deb:asterisk-core-sounds-en-wav=1.6.1-1",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    ),
    "*core-sounds-en.txt.gz": (
        "deb:asterisk-core-sounds-en=1.6.1-1",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    ),
}


# The speech -----------------------------------------------------------------------------------------------------------


def sentences() -> list[str]:
    """The plain sentences of the pages: no digits and no code, 5 to 40 words."""
    found: dict[str, None] = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"^```.*?^```", "\n\n", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for paragraph in re.split(r"\n\s*\n|^[#|>-].*$", text, flags=re.M):
            for sentence in re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split())):
                if re.fullmatch(r"[A-Z][A-Za-z,;:'() -]+[.?!]", sentence) and 5 <= len(sentence.split()) <= 40:
                    found[sentence] = None
    return list(found)


def prompts() -> list[tuple[Path, str]]:
    """(file, what is said in it) of the person's prompts with four words or more."""
    from sensorium.hub import Part, fetch_tree

    trees = {glob: fetch_tree(Part(source, glob, sha256), [glob]) for glob, (source, sha256) in PROMPTS.items()}
    files = {path.stem: path for path in trees["*.wav"].rglob("*.wav")}
    lines = gzip.decompress(next(trees["*core-sounds-en.txt.gz"].rglob("*.gz")).read_bytes()).decode().splitlines()
    said = (line.partition(": ") for line in lines if not line.startswith(";"))
    pairs = [(files[name], text) for name, _, text in said if name in files]
    return [(path, text) for path, text in pairs if len(text.split()) >= 4 and not re.search(r"[\d\[\]#*<>/]", text)]


def speech(seconds: float, seed: int = 0) -> Iterator[tuple[Any, str, bool]]:
    """(samples float32 at 16 kHz, what is said in them, whether by a person), with the pauses after them."""
    import numpy as np
    from hibari import Hibari

    from sensorium.media import load_audio

    chance, noise = random.Random(seed), np.random.default_rng(seed)
    voice, read, person = Hibari(), sentences(), prompts()
    while seconds > 0:
        chance.shuffle(read)
        for number, text in enumerate(read):
            human = number % 5 == 4
            if human:
                path, text = chance.choice(person)
                said = load_audio(path).samples
            else:
                said = load_audio(voice(text, speed=chance.uniform(0.85, 1.3), seed=number), array_rate=24_000).samples
            pause = chance.choice([0.2, 0.3, 0.5, 0.8, 1.5, 4.0])
            both = np.concatenate([said, np.zeros(round(pause * RATE), np.float32)])
            yield both + 0.001 * noise.standard_normal(len(both)).astype(np.float32), text, human
            seconds -= len(both) / RATE
            if seconds <= 0:
                return


def person_alone() -> Iterator[tuple[Any, str, bool]]:
    """Each prompt once, a second between them; as `speech`."""
    import numpy as np

    from sensorium.media import load_audio

    for path, text in prompts():
        yield np.concatenate([load_audio(path).samples, np.zeros(RATE, np.float32)]), text, True


def make(path: Path, spoken: Iterator[tuple[Any, str, bool]]) -> dict[str, Any]:
    """Write a WAV file; its seconds, what is said until when, and the share of them that a person speaks."""
    import numpy as np

    said, length, human = [], 0.0, 0.0
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for samples, text, person in spoken:
            file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
            length += len(samples) / RATE
            human += person * len(samples) / RATE
            said.append((length, text))
    return {"seconds": length, "human": human / length, "said": said}


def beginning(path: Path, target: Path, seconds: float) -> None:
    """Copy the first seconds of a WAV file."""
    with wave.open(str(path)) as source, wave.open(str(target), "wb") as copy:
        copy.setparams(source.getparams())
        copy.writeframes(source.readframes(round(seconds * RATE)))


# Measuring ------------------------------------------------------------------------------------------------------------


def plain(text: str) -> list[str]:
    """Words without case and punctuation."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("’", "'")).split()


def word_errors(wanted: list[str], heard: list[str]) -> float:
    """Edits over the words that were to be heard."""
    import numpy as np

    codes = {word: number for number, word in enumerate(dict.fromkeys(wanted + heard))}
    other, steps = np.array([codes[word] for word in heard]), np.arange(len(heard) + 1)
    row = steps.copy()
    for number, word in enumerate(wanted, 1):
        new = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + (other != codes[word]))])
        row = np.minimum.accumulate(new - steps) + steps
    return float(row[-1]) / len(wanted)


def peer(path: str, size: str) -> None:
    """faster-whisper as its own page shows it; prints its cues as JSON."""
    from faster_whisper import WhisperModel

    from sensorium.encoders.whisper_parts import fetch_whisper

    files: dict[str, Any] = {name: found.read_bytes() for name, found in fetch_whisper(size, progress=False).items()}
    model = WhisperModel(size, device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1, files=files)
    segments, _ = model.transcribe(path, vad_filter=True, word_timestamps=True)
    print(json.dumps([(segment.start, segment.end, segment.text.strip()) for segment in segments]))


KEPT = ("cues", "conforming", "share", "broken", "breaks", "good_breaks", "latest_s")


def ours(path: Path, size: str, said: str) -> dict[str, Any]:
    """Measure `sensorium subtitle`."""
    target = path.with_suffix(".srt")
    command = [sys.executable, "-m", "sensorium", "subtitle", str(path), "-o", str(target), "--model", size, "--json"]
    done = run(command)
    found = json.loads(done.printed)
    lines = target.read_text(encoding="utf-8").split("\n")
    text = " ".join(line for line in lines if "-->" not in line and not line.isdigit())
    return row(done, found, said, text)


def theirs(path: Path, size: str, said: str) -> dict[str, Any]:
    """Measure the peer."""
    from sensorium.tasks.cue_rules import Cue, conformity

    done = run([sys.executable, __file__, "--peer", str(path), "--model", size])
    segments = json.loads(done.printed)
    cues = [Cue(round(1000 * a), round(1000 * b), tuple(textwrap.wrap(text, 42)) or ("",)) for a, b, text in segments]
    return row(done, conformity(cues).to_dict(), said, " ".join(text for _, _, text in segments))


def row(done: Run, found: dict[str, Any], said: str, text: str) -> dict[str, Any]:
    """A line of the result."""
    errors = round(word_errors(plain(said), plain(text)), 4)
    cost = {"wall_s": round(done.wall_s, 1), "cpu_s": round(done.cpu_s, 1), "peak_mb": round(done.peak_mb)}
    return {**cost, "wer": errors, **{key: found[key] for key in KEPT}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--peer-minutes", type=float, default=10)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--keep", metavar="FILE.wav", help="make the speech here, or take what is there")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.peer, options.model)
        return
    with tempfile.TemporaryDirectory() as scratch:
        whole, short, person = (Path(scratch) / f"{name}.wav" for name in ("whole", "short", "person"))
        if options.keep:
            whole = Path(options.keep)
        facts_file = whole.with_suffix(".json")
        if not (whole.exists() and facts_file.exists()):
            facts_file.write_text(json.dumps(make(whole, speech(60 * options.minutes))))
        facts = json.loads(facts_file.read_text())
        cut = min(60 * options.peer_minutes, facts["seconds"])
        beginning(whole, short, cut)
        alone = make(person, person_alone())
        everything = " ".join(text for _, text in facts["said"])
        first = " ".join(text for end, text in facts["said"] if end <= cut)
        rows = {
            "the whole": ours(whole, options.model, everything),
            "its beginning": ours(short, options.model, first),
            "the peer on it": theirs(short, options.model, first),
            "the person alone": ours(person, options.model, " ".join(text for _, text in alone["said"])),
        }
    minutes = {"the whole": facts["seconds"], "the person alone": alone["seconds"]}
    print(f"{facts['human']:.0%} of the speech is by a person; {os.cpu_count()} cores")
    for name, found in rows.items():
        print(
            f"{name:>16} ({minutes.get(name, cut) / 60:4.1f} min): {found['wall_s']:6.1f} s ({found['cpu_s']:.1f} s of "
            f"processor), {found['peak_mb']} MB, "
            f"WER {found['wer']:.1%}, {found['conforming']} of {found['cues']} cues conform ({found['share']:.1%}), "
            f"breaks {found['good_breaks']} of {found['breaks']} good, latest {found['latest_s']:.1f} s"
        )
    print(json.dumps({"seconds": round(facts["seconds"]), "human": round(facts["human"], 3), **rows}))


if __name__ == "__main__":
    main()
