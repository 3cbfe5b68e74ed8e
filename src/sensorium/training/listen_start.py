"""Where a projector that listens starts: at random, or as the one of a composition, with more to hear than it knew."""

from __future__ import annotations

from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sensorium.composition import Composition
from sensorium.errors import UsageError
from sensorium.seams import BACKBONE
from sensorium.training.listen_words import WordKeys


def startable(base: Composition, start: Composition, options: dict[str, Any], kind: str) -> None:
    """Refuse a composition whose projector cannot go on learning beside ``base``.

    Raises:
        UsageError: it does not listen, or with another LLM, encoder or other options.
    """
    spec = start.spec.projectors.get("speech")
    if spec is None or not spec.weights:
        raise UsageError(f"{start.path} has no projector for speech to start from; use projector.start: random.")
    if start.part(BACKBONE).sha256 != base.part(BACKBONE).sha256:
        raise UsageError(f"{start.path} listens with another LLM than {base.path}; use projector.start: random.")
    had = {name: value for name, value in spec.options.items() if name != "words"}
    asked = {name: value for name, value in options.items() if name != "words"}
    if spec.kind != kind or had != asked:
        raise UsageError(
            f"{start.path} has a projector for speech of kind {spec.kind} with options {had}, and the recipe asks for "
            f"{kind} with {asked}; use the same, or projector.start: random."
        )


def start_from(start: Composition, projector: Any, keys: WordKeys) -> int:
    """Give ``projector`` the layers of another one, and its words the keys that they have there; how many these are.

    Which word is which is told by the rows of the LLM's table, which both hold. A word that is new has the key that
    its pieces suggest (`WordKeys.fit`).
    """
    weights = {
        name: value.float() for name, value in load_file(start.file(start.spec.projectors["speech"].weights)).items()
    }
    table, there = weights.pop("words.table"), weights.pop("words.keys")
    missing, unexpected = projector.load_state_dict(weights, strict=False)
    if unexpected or set(missing) != {"words.table", "words.keys"}:
        raise UsageError(f"{start.path} holds another projector than it says; use projector.start: random.")
    of = {_bytes(row): i for i, row in enumerate(table)}
    ours = {i: of.get(_bytes(row)) for i, row in enumerate(projector.words.table)}
    keys.fit({i: there[other] for i, other in ours.items() if i and other}, there[0])
    return sum(other is not None for other in ours.values()) - 1


def _bytes(row: Tensor) -> bytes:
    return bytes(row.half().numpy().tobytes())
