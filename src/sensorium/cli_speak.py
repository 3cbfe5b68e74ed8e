"""`sensorium speak`, and the sound of `sensorium ask --speak`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensorium import console
from sensorium.arguments import output_file
from sensorium.errors import UsageError

if TYPE_CHECKING:
    from sensorium.model import Model
    from sensorium.speech import Cascade, Spoken

Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT.wav", help="The WAV file to write.")]
Speak = Annotated[Path | None, typer.Option("--speak", metavar="OUT.wav", help="Say the answer into a WAV file, too.")]
CascadeOption = Annotated[
    bool, typer.Option("--cascade", help="Say the text of the answer, without the output projector.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(short_help="Say a text.")(speak)


def speak(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say, in English.", show_default=False)],
    output: Output,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Say a text into a WAV file (24 kHz). Needs the extra "speech": pip install -e ".[speech]".

    --json prints {"file", "duration_s", "rate", "phonemes"}.
    """
    from sensorium import generators
    from sensorium.tasks.speak import speak as task
    from sensorium.tasks.speak import wav_file

    target = output_file(output, "-o", ".wav")
    generator = generators.create("hibari")
    with wav_file(target, generator.rate) as sink:
        seconds = task(generator, text, sink)
    if unsaid := generator.unsaid(text):
        console.complain(f"The voice has no sound for {', '.join(unsaid)}; the rest was said.")
    if as_json:
        said = generator.spelled(generator.units_of(text))
        facts = {"file": str(output), "duration_s": round(seconds, 3), "rate": generator.rate, "phonemes": said}
        console.write_json(facts)


def spoken_file(given: Path | None, cascade: bool, inputs: Sequence[str]) -> Path | None:
    """Where an answer is said, which is none of the files that it is about. Raises UsageError for a file that could not
    be written, or `--cascade` without one."""
    if given is not None:
        return output_file(given, "--speak", ".wav", inputs)
    if cascade:
        raise UsageError("--cascade is about how an answer is said; give --speak OUT.wav as well.")
    return None


@contextlib.contextmanager
def speaking(model: Model, output: Path | None, cascade: bool) -> Iterator[Spoken | Cascade | None]:
    """Inside, what `Model.chat` takes as `speaker`; its sound is in the file afterwards. None without a file."""
    if output is None:
        yield None
        return
    from sensorium.tasks.speak import wav_file

    with wav_file(output, model.parts.generator.get().rate) as sink:
        yield model.speaker(sink, cascade=cascade or None)
