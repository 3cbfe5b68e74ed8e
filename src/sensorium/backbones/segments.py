"""Prompts: stretches of token ids and of media embeddings, checked and joined into one sequence of positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.prefix_cache import Codes, media_codes, token_codes
from sensorium.errors import UsageError

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a prompt: token `ids`, or `embeds` float32 [n, dim] of a medium.

    `key` names the content of `embeds` for the prefix cache (a digest of everything they depend on); without one, the
    values themselves are digested.
    """

    ids: tuple[int, ...] = ()
    embeds: Floats | None = None
    key: str = ""

    def __len__(self) -> int:
        return len(self.ids) if self.embeds is None else len(self.embeds)


Prompt = Sequence[Segment]


@dataclass(frozen=True, eq=False)
class Joined:
    """A checked prompt: embeddings float32 [n, dim], prefix-cache codes [n, 3], and the token ids among it."""

    embeds: Floats
    codes: Codes
    ids: list[int]


def join(prompt: Prompt, embed: Callable[[Sequence[int]], Floats], dim: int, context: int, room: int = 0) -> Joined:
    """Checks a prompt and joins its segments; of `context` positions, `room` must remain after it.

    Raises:
        UsageError: the prompt is empty or too long, or a segment is malformed; `embed` refuses ids it does not know.
    """
    embeds: list[Floats] = []
    codes: list[Codes] = []
    ids: list[int] = []
    for segment in prompt:
        if segment.embeds is None:
            embeds.append(embed(segment.ids))
            codes.append(token_codes(tuple(segment.ids)))
            ids.extend(segment.ids)
            continue
        values = np.asarray(segment.embeds, np.float32)
        if segment.ids or values.ndim != 2 or values.shape[1] != dim:
            raise UsageError(
                f"A segment holds {'ids as well as ' if segment.ids else ''}embeddings of shape {values.shape}; "
                f"give either ids or embeddings [n, {dim}]."
            )
        if not np.isfinite(values).all():
            raise UsageError("A segment's embeddings hold values that are not finite; check what made them.")
        embeds.append(values)
        codes.append(media_codes(len(values), segment.key, values))
    length = sum(map(len, embeds))
    if not length:
        raise UsageError("The prompt is empty; give at least one token.")
    if length + room > context:
        answer = f" and the longest answer to score {room + 1}" if room else ""
        raise UsageError(
            f"The prompt has {length} tokens{answer}, and the model's context holds {context}; "
            "shorten the text or attach less."
        )
    return Joined(np.concatenate(embeds), np.concatenate(codes), ids)
