"""Byte-level BPE (the "gpt2" tokenizer model of GGUF files), run by the `tokenizers` library."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.backbones.vocabulary import Kind, Vocabulary
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {"llama-bpe": _SPLIT % r"\p{N}{1,3}", "qwen2": _SPLIT % r"\p{N}"}


class ByteLevelBPE:
    """Text <-> ids by a vocabulary of byte strings and a ranked list of merges.

    `rules` is the GGUF name of the pre-tokenizer: "smollm", "gpt-2", "llama-bpe" or "qwen2". Bytes that the vocabulary
    lacks (SmolLM2 has none for six control characters) yield no token, as in the library and in llama.cpp.
    """

    strips_first_space = False

    def __init__(self, vocabulary: Vocabulary, merges: list[str], rules: str, path: Path) -> None:
        from tokenizers import AddedToken, Tokenizer, models, normalizers

        self._vocabulary = vocabulary
        # From the second character on, as llama.cpp does: a merge's first part is never empty.
        pairs = [(merge[:cut], merge[cut + 1 :]) for merge in merges if (cut := merge.find(" ", 1)) > 0]
        try:
            # Llama 3 takes a word that is a token as it stands, even where its merges would not build it.
            model = models.BPE(vocabulary.text_ids(), pairs, ignore_merges=rules == "llama-bpe")
        except Exception as error:
            raise SensoriumError(f"The model file {path} has merges outside its vocabulary ({error}).") from error
        self._pipeline = Tokenizer(model)
        self._pipeline.pre_tokenizer = _pre_tokenizer(rules, path)
        if rules == "qwen2":
            # Qwen trained on NFC text (its tokenizer.json says so); llama.cpp omits this step.
            self._pipeline.normalizer = normalizers.NFC()
        self._pipeline.add_tokens([AddedToken(text, normalized=False) for text in vocabulary.matched_whole()])

    @property
    def pipeline(self) -> Tokenizer:
        """What the library runs, for a `tokenizer.json`; it knows no special token."""
        return self._pipeline

    def encode(self, text: str) -> list[int]:
        return self._pipeline.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int) -> bytes:
        text = self._vocabulary.tokens[token]
        if self._vocabulary.kinds[token] == Kind.USER_DEFINED:
            return text.encode("utf-8", "replace")
        table = byte_of_char()
        # A character outside the table can only come from a damaged vocabulary; keep it visible.
        return b"".join(table.get(char) or char.encode("utf-8", "replace") for char in text)


def _pre_tokenizer(rules: str, path: Path) -> PreTokenizer:
    """The splitting rules by their GGUF name (llama-vocab.cpp); unknown names are refused: a near miss is silent."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if rules == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if rules == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if rules in _PATTERNS:
        split = Split(Regex(_PATTERNS[rules]), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    names = ", ".join(["smollm", "gpt-2", *_PATTERNS])
    raise SensoriumError(f"The model file {path} splits text by the rules {rules!r}; supported are {names}.")


@lru_cache(maxsize=1)
def byte_of_char() -> dict[str, bytes]:
    """GPT-2's table from printable stand-in characters to bytes (`bytes_to_unicode` in openai/gpt-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): bytes([byte]) for byte in printable}
    others = sorted(set(range(256)) - set(printable))
    return table | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
