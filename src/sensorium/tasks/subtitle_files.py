"""Cues as the text of SubRip (.srt) and WebVTT (.vtt) files."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from sensorium.tasks.cue_rules import Cue


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered, times with a comma."""
    return "\n".join(
        # an arrow in the text would read as a line of times
        f"{number}\n{_times(cue, ',')}\n{_joined(cue).replace('-->', '->')}\n"
        for number, cue in enumerate(cues, 1)
    )


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/), with markup of the text escaped."""
    return "WEBVTT\n\n" + "\n".join(f"{_times(cue, '.')}\n{html.escape(_joined(cue), quote=False)}\n" for cue in cues)


WRITERS: dict[str, Callable[[Sequence[Cue]], str]] = {".srt": to_srt, ".vtt": to_vtt}
"""By the ending of the file."""


def _joined(cue: Cue) -> str:
    return "\n".join(cue.lines)


def _times(cue: Cue, point: str) -> str:
    return f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}"


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"
