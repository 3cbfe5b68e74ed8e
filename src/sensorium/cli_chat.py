"""`sensorium chat`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sensorium import console
from sensorium.cli_options import MaxTokens, ModelOption, Seed, Temperature, sampling, start
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.model import Model
    from sensorium.turns.microphone import Microphone

TYPED = "Type a message; Ctrl-D ends."
SPOKEN = "Type a message, or press Enter to speak and Enter again when you have finished; Ctrl-D ends."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(short_help="Talk with the model.")(chat)


def chat(
    model: ModelOption = "mini",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No microphone and no sound: text alone.")] = False,
) -> None:
    """Talk with the model: type, or press Enter to speak and Enter again to send. Answers are shown and said.

    A new message or Enter interrupts an answer; the model then remembers what was said of it. Where there is no
    microphone, or nothing to play sound with, a sentence says so and the conversation goes on without.
    """
    options = sampling(max_tokens, temperature, seed)
    if sys.stdin is None:
        raise SensoriumError("Standard input is closed, so nothing can be typed; leave it open.")
    composed = start(model, ())
    microphone = None if quiet else _microphone(composed)
    composed.load()
    from sensorium.turns.chat import Chat
    from sensorium.turns.engine import ModelEngine
    from sensorium.turns.player import command

    aloud = not quiet
    try:
        if aloud:
            command(1)
        engine = ModelEngine(composed, aloud=aloud, **options)
    except SensoriumError as error:
        console.complain(str(error))
        aloud = False
        engine = ModelEngine(composed, aloud=False, **options)
    terminal = sys.stdin.isatty()
    if terminal:
        _hint(SPOKEN if microphone else TYPED)
    with Chat(engine, microphone, console.write, _hint, console.complain, player=aloud) as conversation:
        conversation.run(_lines(), wait=not terminal)


def _microphone(model: Model) -> Microphone | None:
    """The microphone; None, and a sentence, where there is none or the model could not hear it."""
    from sensorium.turns.activity import Silero
    from sensorium.turns.microphone import Microphone

    if "speech" not in model.composition.spec.projectors:
        console.complain(f"The model {model.name!r} was not trained to listen, so type to it.")
        return None
    try:
        Silero()  # says what is not installed, before somebody speaks
        found = Microphone()
    except SensoriumError as error:
        console.complain(str(error))
        return None
    model.start({"speech"})
    return found


def _lines() -> Iterator[str]:
    """What is typed, as it comes; what is no text is replaced."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while line := sys.stdin.readline():
        yield line


def _hint(sentence: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
