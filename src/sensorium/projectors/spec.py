"""The kinds of projectors: the registry, and the one function that says how many tokens a medium takes.

A new kind is one torch file beside this one and one line of `KINDS`. Prompts, seams, recipes, training and benchmarks
all read it here; no torch is imported before a module is asked for. Two places that each compute the number of tokens
are the field's commonest fault ("image features and image tokens do not match").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sensorium.errors import UsageError

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec

Options = Mapping[str, Any]
LARGEST = 65536
"""Of any option."""


@dataclass(frozen=True)
class Kind:
    """A kind of projector.

    Attributes:
        file, name: the torch module, ``projectors/<file>.py``, and its class. It is made as ``name(dim, out_dim, grid,
            **options)`` (feature width, backbone width, the encoder's (h, w) cells) and turns features [B, cells, dim]
            into embeddings [B, tokens, out_dim].
        options: its options with their defaults, whole numbers of 1 or more; None means that the class decides, and
            one whose default is 0 may be 0.
        tokens: (options with all defaults filled in, what the encoder gives) -> tokens of one medium.
        positions: of a kind that takes features along time: (options, frames) -> tokens of a medium of so many frames;
            its ``tokens`` is what a medium takes at least.
        may_leave_out: options -> whether it may give fewer positions than that, of what says nothing.
        starts: what it may start from besides random numbers (`training/projectors.py`).
    """

    file: str
    name: str
    options: Mapping[str, int | None]
    tokens: Callable[[Options, FeatureSpec], int]
    positions: Callable[[Options, int], int] | None = None
    may_leave_out: Callable[[Options], bool] = lambda options: False
    starts: tuple[str, ...] = ()

    def filled(self, options: Options) -> dict[str, Any]:
        """The options with defaults filled in, checked; of others, nothing is said."""
        values = {name: options.get(name, default) for name, default in self.options.items()}
        for name, value in values.items():
            least = 0 if self.options[name] == 0 else 1
            if value is None and self.options[name] is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"projector option {name}={value!r} must be a whole number of {least} or more.")
        return values


def tokens_for(kind: str, options: Options, features: FeatureSpec) -> int:
    """The number of LLM positions that one medium takes after projection.

    Args:
        kind: The projector's kind, a key of `KINDS`.
        options: The projector's options as the composition or recipe declares them.
        features: What the encoder gives.

    Raises:
        UsageError: the kind is unknown, or its options do not fit the encoder's layout.
    """
    found = find(kind)
    count = found.tokens(found.filled(options), features)
    if count < 1:
        raise UsageError(
            f"projector kind {kind!r} with options {dict(options)} would give {count} tokens; it must give at least 1."
        )
    return count


def positions_for(kind: str, options: Options, frames: int) -> int:
    """The number of LLM positions of a medium along time, 0 for one without frames; arguments as of `tokens_for`.

    Raises:
        UsageError: the kind is unknown, or is none that takes features along time.
    """
    found = find(kind)
    if found.positions is None:
        along = ", ".join(sorted(name for name, each in KINDS.items() if each.positions))
        raise UsageError(f"projector kind {kind!r} takes no features along time; kinds that do: {along}.")
    return found.positions(found.filled(options), frames)


def find(kind: str) -> Kind:
    """The kind of that name. Raises UsageError for an unknown one."""
    if kind not in KINDS:
        raise UsageError(f"projector kind {kind!r} is unknown; known kinds: {', '.join(sorted(KINDS))}.")
    return KINDS[kind]


def torch_class(kind: str) -> Any:
    """The torch module of a kind (imports torch); see `Kind.name` for how it is made."""
    found = find(kind)
    return getattr(import_module(f"sensorium.projectors.{found.file}"), found.name)


def blocks(options: Options, features: FeatureSpec) -> int:
    """Tokens of a grid of features that is cut into blocks of `pool` x `pool` cells."""
    height, width = getattr(features.layout, "h", None), getattr(features.layout, "w", None)
    if height is None or width is None:
        raise UsageError(f"the projector pools a grid of features, but the encoder gives a {features.layout}.")
    pool = options["pool"]
    if height % pool or width % pool:
        raise UsageError(
            f"projector option pool={pool} does not divide the encoder's grid of {height}x{width}; choose a common "
            "divisor."
        )
    return int(height // pool) * int(width // pool)


def along_time(options: Options, features: FeatureSpec) -> int:
    """What a stack of frames takes at least: one token."""
    if features.rate_hz is None:
        raise UsageError(f"the projector stacks features along time, but the encoder gives a {features.layout}.")
    return 1


KINDS: dict[str, Kind] = {
    "mlp": Kind("mlp", "MLPProjector", {"pool": 1, "hidden": None}, blocks),
    "concept": Kind(
        "concept",
        "ConceptProjector",
        {"pool": 2, "concepts": 1000, "hidden": 768, "learnt": 0},
        lambda options, features: 1 + blocks(options, features),
        starts=("concepts",),
    ),
    "resampler": Kind(
        "resampler",
        "ResamplerProjector",
        {"queries": 32, "depth": 2, "width": 384, "heads": 6},
        lambda options, features: int(options["queries"]),
    ),
    "stack": Kind(
        "stack",
        "StackProjector",
        {"stack": 8, "hidden": 1024, "depth": 0, "context": 2, "width": 512, "words": 0, "keys": 256},
        along_time,
        lambda options, frames: -(-frames // int(options["stack"])),
        lambda options: bool(options.get("words")),
    ),
}
