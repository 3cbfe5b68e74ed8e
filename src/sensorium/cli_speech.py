"""`sensorium transcribe` and `sensorium subtitle`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensorium import console
from sensorium.arguments import output_file
from sensorium.errors import SensoriumError, UsageError

if TYPE_CHECKING:
    from sensorium.tasks.transcribe import Transcriber

File = Annotated[str, typer.Argument(metavar="FILE", help="Sound or a video; - is standard input.", show_default=False)]
Size = Annotated[str, typer.Option("--model", metavar="tiny.en|base", help="English, or 99 languages.")]
Language = Annotated[
    str | None, typer.Option("--language", metavar="CODE", help="Spoken language (base). Default: found out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(short_help="Write down what is said.")(transcribe)
    app.command(short_help="Write subtitles.")(subtitle)


def transcribe(
    file: File,
    model: Size = "tiny.en",
    language: Language = None,
    words: Annotated[bool, typer.Option("--words", help="Give the time of every word.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write down what is said in a file of sound or a video. Needs the extra "speech": pip install -e ".[speech]".

    --json prints {"text", "language", "duration_s", "segments": [{"start_s", "end_s", "text"}]}; with --words each
    segment has "words": [{"word", "start_s", "end_s", "probability"}].
    """
    from sensorium.tasks.transcribe import transcribe as task

    transcriber, source = _start(file, model, language)
    segments, found = [], False
    with console.counting("Transcribing") as progress:
        for segment in task(source, transcriber, progress=progress):
            found = True
            if as_json:
                segments.append(segment)
            elif words:
                console.write("".join(f"{w.start:9.2f} {w.end:9.2f}  {w.text}\n" for w in segment.words))
            else:
                console.write(f"{segment.text}\n")
    if as_json:
        console.write_json(
            {
                "text": " ".join(segment.text for segment in segments),
                "language": transcriber.language,
                "duration_s": round(transcriber.seconds, 3),
                "segments": [segment.to_dict(words=words) for segment in segments],
            }
        )
    if not found:
        console.complain(f"{'Standard input' if file == '-' else file} holds no speech, so nothing is written down.")


def subtitle(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.srt|.vtt", help="The file to write.")],
    model: Size = "tiny.en",
    language: Language = None,
    report: Annotated[bool, typer.Option("--report", help="Say how far the cues keep the rules.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write subtitles for a file of sound or a video. Needs the extra "speech": pip install -e ".[speech]".

    Cues have at most 2 lines of 42 characters, stand 5/6 to 7 seconds, at most 20 characters a second, 2 frames apart.
    """
    from sensorium.tasks.cue_rules import conformity
    from sensorium.tasks.subtitle import check_ending, write
    from sensorium.tasks.subtitle import subtitle as task

    check_ending(output)
    output = output_file(output, "-o")
    transcriber, source = _start(file, model, language)
    with console.counting("Transcribing") as progress:
        cues = task(source, transcriber, progress=progress)
    write(cues, output)
    measured = conformity(cues)
    if as_json:
        console.write_json({"file": str(output), "language": transcriber.language, **measured.to_dict()})
    elif report and cues:
        console.write(f"{measured}\n")
    if not cues:
        console.complain(f"{file} holds no speech, so {output} has no cues.")


def _start(file: str, model: str, language: str | None) -> tuple[Transcriber, Any]:
    """The file is looked at before a model is fetched for it."""
    from sensorium.media.audio import open_audio
    from sensorium.tasks.transcribe import Transcriber

    source = _source(file)
    if source is file:
        with open_audio(file):
            pass
    return Transcriber(model, language), source


def _source(file: str) -> Any:
    if file != "-":
        return file
    if sys.stdin is None:
        raise SensoriumError("Standard input is closed, so no sound can be read from it; pipe a file into it.")
    if sys.stdin.isatty():
        raise UsageError("- reads sound from standard input, which is this terminal; pipe a file into it.")
    return sys.stdin.buffer
