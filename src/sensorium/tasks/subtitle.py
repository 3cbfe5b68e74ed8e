"""Subtitles of a file of sound or a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sensorium import hub
from sensorium.errors import UsageError
from sensorium.media.audio import AudioSource
from sensorium.media.limits import DEFAULT, Limits
from sensorium.tasks.cue_rules import Cue
from sensorium.tasks.cues import to_cues
from sensorium.tasks.subtitle_files import WRITERS
from sensorium.tasks.transcribe import Transcriber, transcribe


def subtitle(
    source: AudioSource,
    transcriber: Transcriber,
    *,
    limits: Limits = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cue]:
    """Cues that keep the rules of `cue_rules`; none where nobody speaks. Arguments and errors as of `transcribe`."""
    segments = transcribe(source, transcriber, limits=limits, progress=progress)
    words = [(word.text, word.start, word.end) for segment in segments for word in segment.words]
    return to_cues(words, transcriber.seconds)


def check_ending(path: Path) -> None:
    """Raise UsageError unless the file's name ends in .srt or .vtt."""
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"-o {path} must end in {' or '.join(WRITERS)}, the kinds of subtitles that are written.")


def write(cues: list[Cue], path: Path) -> None:
    """Write them as the ending of the name says.

    Raises:
        UsageError: another ending.
        SensoriumError: the file cannot be written.
    """
    check_ending(path)
    with hub.atomic_write(path, "wb") as file:  # an earlier file stays whole where this one does not fit
        file.write(WRITERS[path.suffix.lower()](cues).encode())
