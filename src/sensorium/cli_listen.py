"""`sensorium listen`: a spoken question in, text and speech out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensorium import cli_media, cli_speak, console
from sensorium.arguments import output_file
from sensorium.cli_options import JsonOption, MaxTokens, ModelOption, Seed, Temperature, sampling, start
from sensorium.errors import SensoriumError, UsageError

if TYPE_CHECKING:
    from sensorium.generators.base import Samples

    Sink = Callable[[Samples], None]

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT.wav", help="Say the answer into a WAV file, too.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(short_help="Answer a spoken question.")(listen)


def listen(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The question: sound or a video; - is standard input.")],
    output: Output = None,
    play: Annotated[bool, typer.Option("--play", help="Play the answer while it is generated.")] = False,
    attach: cli_media.Attach = [],  # noqa: B006 (typer reads it once and never changes it)
    model: ModelOption = "mini",
    as_json: JsonOption = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    cascade: cli_speak.CascadeOption = False,
) -> None:
    """Answer a spoken question, without writing it down first. Needs the extra "speech": pip install -e ".[speech]".

    The answer is printed while it is generated, and said into -o OUT.wav or by --play. --json prints {"answer",
    "model", "usage", "timings"}; the seconds of "timings" count from the end of the question, its "real_time_factor"
    compares them with the sound.
    """
    from sensorium.tasks.listen import listen as task
    from sensorium.tasks.speak import wav_file

    options = sampling(max_tokens, temperature, seed)
    if output is not None:
        output = output_file(output, "-o", ".wav", [file, *attach])
    elif cascade and not play:
        raise UsageError("--cascade is about how an answer is said; give -o OUT.wav or --play as well.")
    cli_media.check([file, *attach], cli_media.sound)
    composed = start(model, {"speech", *(cli_media.kind(name) for name in attach)})
    question = cli_media.sound(file, composed.hearing)
    images, sounds = cli_media.apart([cli_media.attached(name, composed.hearing) for name in attach])
    show = None if as_json else console.write
    options |= {"image": images, "cascade": cascade or None, "show": show}
    composed.load()
    sinks: list[Sink] = []
    with contextlib.ExitStack() as stack:
        if output is not None:
            sinks.append(stack.enter_context(wav_file(output, composed.parts.generator.get().rate)))
        if play:
            sinks += stack.enter_context(_playing(composed.parts.generator.get().rate))
        reply = task(composed, [question, *sounds], speak=bool(sinks), sink=_to_all(sinks), **options)
        console.write_json(reply.to_dict()) if as_json else console.write("\n")


def _to_all(sinks: list[Sink]) -> Sink:
    def take(sound: Samples) -> None:
        for sink in sinks:
            sink(sound)

    return take


@contextlib.contextmanager
def _playing(rate: int) -> Iterator[list[Sink]]:
    """Inside, what plays sound, and behind it all was played. Nothing, and a sentence, where nothing can be played."""
    from sensorium.turns.player import ALL, Player

    over = threading.Event()

    def played(turn: int, samples: int) -> None:
        if samples >= ALL:
            over.set()

    try:
        player = Player(rate, played, lambda why: console.complain(str(why)))
    except SensoriumError as error:
        console.complain(str(error))
        yield []
        return
    with contextlib.closing(player):
        player.begin(1)
        yield [lambda sound: player.play(1, sound)]
        player.finish(1)
        over.wait()
