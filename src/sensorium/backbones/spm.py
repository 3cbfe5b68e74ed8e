"""SentencePiece BPE (the "llama" tokenizer model of GGUF files: Llama 2, Mistral, Gemma), in plain Python.

The algorithm is SentencePiece's `bpe_model.cc`: join the neighbouring pair whose union has the highest score until no
union is a token, then spell what is left in bytes. It runs without a merge list, which these files do not have, so
nothing must be derived at start-up; 1,000 characters take about 2 ms.
"""

from __future__ import annotations

import heapq
import re
from pathlib import Path

import numpy as np

from sensorium.backbones.vocabulary import Kind, Vocabulary
from sensorium.errors import SensoriumError

_SPACE = "\u2581"


class SentencePiece:
    """Text <-> ids by scored pieces; `space_prefix` puts a space before every text, as Llama 2 was trained."""

    def __init__(self, vocabulary: Vocabulary, scores: object, space_prefix: bool, path: Path) -> None:
        tokens, kinds = vocabulary.tokens, vocabulary.kinds
        if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or len(scores) != len(tokens):
            raise SensoriumError(f"The model file {path} does not give each token its score; it is damaged.")
        self.strips_first_space = space_prefix
        self._vocabulary = vocabulary
        self._scores: list[float] = scores.tolist()
        whole = vocabulary.matched_whole()
        self._pieces = {text: i for text, i in vocabulary.text_ids().items() if kinds[i] == Kind.NORMAL}
        self._whole = {text: i for text, i in vocabulary.text_ids().items() if kinds[i] == Kind.USER_DEFINED}
        longest_first = sorted(map(re.escape, whole), key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(longest_first)})") if whole else None
        self._bytes: dict[int, int] = {}
        for i, kind in enumerate(kinds):
            if kind == Kind.BYTE and (match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", tokens[i])):
                self._bytes[int(match[1], 16)] = i
        self._byte_of = {i: bytes([byte]) for byte, i in self._bytes.items()}
        self._unknown = kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = []
        parts = self._cut.split(text) if self._cut else [text]
        for at, part in enumerate(parts):
            if at % 2:
                ids.append(self._whole[part])
            elif part:
                prefix = " " if self.strips_first_space and at == 0 else ""
                ids += self._merge((prefix + part).replace(" ", _SPACE))
        return ids

    def token_bytes(self, token: int) -> bytes:
        if token in self._byte_of:
            return self._byte_of[token]
        text = self._vocabulary.tokens[token]
        if self._vocabulary.kinds[token] == Kind.NORMAL:
            text = text.replace(_SPACE, " ")
        return text.encode("utf-8", "replace")

    def _merge(self, text: str) -> list[int]:
        """Ids of one run of text. Symbols form a linked list; the heap holds candidate unions, the stale ones too."""
        pieces, scores = self._pieces, self._scores
        symbols: list[str] = list(text)
        after = [*range(1, len(symbols)), -1]
        before = list(range(-1, len(symbols) - 1))
        heap: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (token := pieces.get(union := symbols[left] + symbols[right])) is not None:
                heapq.heappush(heap, (-scores[token], left, right, union))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, union = heapq.heappop(heap)
            # Stale when either side has grown or gone since (a symbol that was absorbed is empty).
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != union:
                continue
            symbols[left], symbols[right] = union, ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [token for symbol in symbols if symbol for token in self._spell(symbol)]

    def _spell(self, symbol: str) -> list[int]:
        """A symbol that is no token has one character only: its bytes, or the unknown token where bytes are lacking."""
        if symbol in self._pieces:
            return [self._pieces[symbol]]
        spelled = [self._bytes.get(byte) for byte in symbol.encode("utf-8")]
        if None not in spelled:
            return [token for token in spelled if token is not None]
        return [] if self._unknown is None else [self._unknown]
