"""How many tokens a medium takes: the one function that the prompt builder, the training collator and the model all
call.

Two places that each compute this number are the field's commonest fault ("image features and image tokens do not
match").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sensorium.errors import UsageError

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec

Options = Mapping[str, Any]


def tokens_for(kind: str, options: Options, features: FeatureSpec) -> int:
    """The number of LLM positions that one medium takes after projection.

    Args:
        kind: The projector's kind, a key of `KINDS`.
        options: The projector's options as the composition or recipe declares them.
        features: What the encoder gives.

    Raises:
        UsageError: the kind is unknown, or its options do not fit the encoder's layout.
    """
    if kind not in KINDS:
        raise UsageError(f"projector kind {kind!r} is unknown; known kinds: {', '.join(sorted(KINDS))}.")
    count = KINDS[kind](options, features)
    if count < 1:
        raise UsageError(
            f"projector kind {kind!r} with options {dict(options)} would give {count} tokens; it must give at least 1."
        )
    return count


def _grid(kind: str, features: FeatureSpec) -> tuple[int, int]:
    height, width = getattr(features.layout, "h", None), getattr(features.layout, "w", None)
    if height is None or width is None:
        raise UsageError(
            f"projector kind {kind!r} pools a grid of features, but the encoder gives a {features.layout}."
        )
    return int(height), int(width)


def _mlp(options: Options, features: FeatureSpec) -> int:
    """`mlp`: the grid is average-pooled by `pool` in both directions (default 1), then each cell becomes one token."""
    pool = _integer("pool", options, 1)
    height, width = _grid("mlp", features)
    if height % pool or width % pool:
        raise UsageError(
            f"projector option pool={pool} does not divide the encoder's grid of {height}x{width}; choose a common "
            "divisor."
        )
    return (height // pool) * (width // pool)


def _resampler(options: Options, features: FeatureSpec) -> int:
    """`resampler`: `queries` learned queries attend to all features, whatever their number."""
    return _integer("queries", options, 32)


def _integer(name: str, options: Options, default: int) -> int:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"projector option {name}={value!r} must be a whole number of 1 or more.")
    return value


def _concept(options: Options, features: FeatureSpec) -> int:
    """`concept`: one token for the whole picture, then one for every block of `pool` x `pool` cells (default 2)."""
    return 1 + _mlp({"pool": _integer("pool", options, 2)}, features)


KINDS: dict[str, Callable[[Options, FeatureSpec], int]] = {"mlp": _mlp, "concept": _concept, "resampler": _resampler}
"""Projector kind -> its token count. A new projector adds one line here and one torch file beside this one."""
