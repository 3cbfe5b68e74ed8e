"""`sensorium listen`: a spoken question in, text and speech out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sensorium import cli_media, cli_speak, console
from sensorium.arguments import check_output
from sensorium.cli_options import JsonOption, MaxTokens, ModelOption, Seed, Temperature, sampling, start
from sensorium.errors import UsageError

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT.wav", help="Say the answer into a WAV file, too.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(short_help="Answer a spoken question.")(listen)


def listen(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The question: sound or a video; - is standard input.")],
    output: Output = None,
    attach: cli_media.Attach = [],  # noqa: B006 (typer reads it once and never changes it)
    model: ModelOption = "mini",
    as_json: JsonOption = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    cascade: cli_speak.CascadeOption = False,
) -> None:
    """Answer a spoken question, without writing it down first. Needs the extra "speech": pip install -e ".[speech]".

    The answer is printed while it is generated, and said into -o OUT.wav. --json prints {"answer", "model", "usage",
    "timings"}; the seconds of "timings" count from the end of the question, its "real_time_factor" compares them with
    the sound.
    """
    from sensorium.tasks.listen import listen as task
    from sensorium.tasks.speak import wav_file

    options = sampling(max_tokens, temperature, seed)
    if output is not None:
        check_output(output, "-o")
    elif cascade:
        raise UsageError("--cascade is about how an answer is said; give -o OUT.wav as well.")
    cli_media.check([file, *attach], cli_media.sound)
    composed = start(model, {"speech", *(cli_media.kind(name) for name in attach)})
    question = cli_media.sound(file)
    images, sounds = cli_media.apart([cli_media.attached(name) for name in attach])
    show = None if as_json else console.write
    options |= {"image": images, "cascade": cascade or None, "show": show}
    composed.load()
    if output is None:
        reply = task(composed, [question, *sounds], speak=False, **options)
    else:
        with wav_file(output, composed.parts.generator.get().rate) as sink:
            reply = task(composed, [question, *sounds], sink=sink, **options)
    console.write_json(reply.to_dict()) if as_json else console.write("\n")
