"""What commands that let a model answer share: their options, and how a model is begun."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensorium.errors import UsageError

if TYPE_CHECKING:
    from sensorium.model import Model

ModelOption = Annotated[str, typer.Option("--model", metavar="NAME|DIR", help="Packaged composition or a directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", help="0 picks the most probable token.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]


def sampling(max_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
    """Sampling options, checked before anything loads."""
    from sensorium.backbones.engine import SamplingParams

    chosen: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    try:
        SamplingParams(**chosen, stop_ids=frozenset())
    except UsageError as error:  # says max_tokens=0, where the command line has --max-tokens 0
        said = re.sub(r"^([a-z_]+)=", lambda found: f"--{found[1].replace('_', '-')} ", str(error))
        raise UsageError(said) from None
    return chosen


def start(name: str, media: Collection[str] | None) -> Model:
    """Begin to load a model in the background, for a conversation with such kinds of media; `load()` on it waits and
    checks the seams."""
    from sensorium.composition import Composition
    from sensorium.model import Model

    return Model(Composition.find(name)).start(media)
