"""A model's tokens and what each of them is for."""

from __future__ import annotations

import re
from enum import IntEnum

import numpy as np

from sensorium.backbones.source import WeightSource
from sensorium.errors import SensoriumError

# A user-defined token that looks like a marker (<think>, <tool_call>, [INST]) is structure, not text; others, such as
# runs of spaces or line breaks, are ordinary vocabulary that happens to be matched before anything else.
_MARKER = re.compile(r"<.*>|\[[A-Z_/]+\]", re.DOTALL)


class Kind(IntEnum):
    """What a token is for (`llama_token_type` in llama.h)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """`tokens[id]` and `kinds[id]`, and which of them text may turn into.

    Raises `SensoriumError` when the file has no tokens or their kinds do not fit.
    """

    def __init__(self, gguf: WeightSource) -> None:
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens:
            raise SensoriumError(f"The model file {gguf.path} holds no tokenizer; use a conversion that does.")
        kinds = gguf.metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
        if not isinstance(kinds, np.ndarray) or kinds.dtype.kind not in "iu" or len(kinds) != len(tokens):
            raise SensoriumError(f"The model file {gguf.path} does not give each token its type; it is damaged.")
        self.tokens: list[str] = tokens
        self.kinds: list[int] = kinds.tolist()
        odd = np.flatnonzero(kinds != Kind.NORMAL).tolist()
        self._matched = {i for i in odd if kinds[i] == Kind.USER_DEFINED and not _MARKER.fullmatch(tokens[i])}
        structure = (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
        self.special: dict[str, int] = {tokens[i]: i for i in odd if kinds[i] in structure and i not in self._matched}
        """Tokens that only a prompt builder places, by name; text never yields them."""

    def text_ids(self) -> dict[str, int]:
        """The tokens that text may yield by merging, and those matched whole, by their spelling."""
        kinds, matched = self.kinds, self._matched
        return {text: i for i, text in enumerate(self.tokens) if kinds[i] == Kind.NORMAL or i in matched}

    def matched_whole(self) -> list[str]:
        """User-defined tokens of ordinary text (runs of spaces, line breaks), which are found before any merging."""
        return [self.tokens[i] for i in sorted(self._matched) if self.tokens[i]]
