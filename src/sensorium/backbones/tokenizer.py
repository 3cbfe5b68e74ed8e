"""A tokenizer built from a model file's own metadata: text <-> token ids, special tokens by name, and streaming.

Text never yields special tokens: they are left out of the vocabulary that text is matched against, so a user who types
`<|im_start|>` gets those twelve characters. The prompt builder places special tokens by id (`special`).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from sensorium.backbones.source import WeightSource
from sensorium.backbones.spec import end_ids, token_id
from sensorium.backbones.vocabulary import Vocabulary
from sensorium.errors import SensoriumError


class Algorithm(Protocol):
    """How a vocabulary is applied to text (`bpe.py`, `spm.py`, `hf_tokenizer.py`)."""

    @property
    def strips_first_space(self) -> bool:
        """Whether `encode` puts a space before the text, which decoding takes away again."""

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class Tokenizer:
    """Text <-> token ids of one model; safe to share between threads.

    `vocab_size` counts all tokens; `eos_ids` are those after which the model is done. `add_bos` tells whether the model
    was trained with `bos_id` before every text: the prompt builder adds it, `encode` never does. `eos_id` is the one of
    `eos_ids` that the file calls so.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        algorithm: Algorithm,
        eos_ids: frozenset[int] = frozenset(),
        bos_id: int | None = None,
        add_bos: bool = False,
        eos_id: int | None = None,
    ) -> None:
        self.vocab_size = len(vocabulary.tokens)
        self.eos_ids, self.bos_id, self.add_bos, self.eos_id = eos_ids, bos_id, add_bos, eos_id
        self._special, self._special_ids = vocabulary.special, frozenset(vocabulary.special.values())
        self._algorithm = algorithm

    @classmethod
    def from_gguf(cls, gguf: WeightSource) -> Tokenizer:
        """Raises `SensoriumError` when the file's tokenizer is missing, damaged or of a kind that is not supported."""
        vocabulary = Vocabulary(gguf)
        size = len(vocabulary.tokens)
        bos = token_id(gguf, "bos", size)
        # Llama 2 files may leave this out and mean yes; BPE files may leave it out and mean no (llama-vocab.cpp).
        add_bos = gguf.metadata.get("tokenizer.ggml.add_bos_token", gguf.metadata.get(_MODEL) == "llama")
        named = (token_id(gguf, "eos", size), *gguf.metadata.get("tokenizer.ggml.eos_token_ids", ()))
        eos = next((token for token in named if token is not None), None)
        return cls(vocabulary, _algorithm(gguf, vocabulary), end_ids(gguf, size), bos, add_bos is True, eos)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone: no special token, no beginning-of-text token. Lone surrogates become U+FFFD."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._algorithm.encode(text)

    def special(self, name: str) -> int:
        """The id of a special token by its exact name, such as "<|im_start|>"; any other is a `SensoriumError`."""
        if name not in self._special:
            raise SensoriumError(f"The tokenizer has no special token {name!r}; choose the model's own chat template.")
        return self._special[name]

    def has_special(self, name: str) -> bool:
        """Whether there is a special token of this exact name."""
        return name in self._special

    def is_special(self, token: int) -> bool:
        """Whether the id is a special token, which `decode` leaves out."""
        return token in self._special_ids

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text, in UTF-8 (perhaps a part of a character); empty for special tokens."""
        if not 0 <= token < self.vocab_size:
            raise SensoriumError(f"The token id {token} is outside the vocabulary of {self.vocab_size} tokens.")
        return b"" if token in self._special_ids else self._algorithm.token_bytes(token)

    def encode_answer(self, text: str) -> list[int]:
        """The ids of an answer: as `encode`, but for the names of new tokens (`new_tokens.WithNewTokens`)."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens; bytes that form no character become U+FFFD."""
        stream = self.stream()
        return "".join([stream.push(token) for token in ids]) + stream.flush()

    def stream(self) -> Detokenizer:
        """A fresh streaming decoder: the concatenation of its outputs equals `decode` of all ids."""
        return Detokenizer(self, self._algorithm.strips_first_space)


class Detokenizer:
    """Turns ids into text as they arrive, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer, strip_first_space: bool = False) -> None:
        self._tokenizer = tokenizer
        self._strip = self._strips = strip_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes, perhaps none."""
        data = self._tokenizer.token_bytes(int(token))
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing. Then the decoder starts afresh."""
        rest, self._strip = self._decoder.decode(b"", final=True), self._strips
        self._decoder.reset()
        return rest


_MODEL = "tokenizer.ggml.model"


def _algorithm(gguf: WeightSource, vocabulary: Vocabulary) -> Algorithm:
    model = gguf.metadata.get(_MODEL)
    if model == "gpt2":
        from sensorium.backbones.bpe import ByteLevelBPE

        merges, rules = gguf.metadata.get("tokenizer.ggml.merges"), gguf.metadata.get("tokenizer.ggml.pre", "gpt-2")
        if not isinstance(merges, list):
            raise SensoriumError(f"The model file {gguf.path} holds a BPE tokenizer without merges; it is damaged.")
        return ByteLevelBPE(vocabulary, merges, str(rules), gguf.path)
    if model == "llama":
        from sensorium.backbones.spm import SentencePiece

        prefix = gguf.metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
        return SentencePiece(vocabulary, gguf.metadata.get("tokenizer.ggml.scores"), prefix, gguf.path)
    if model == "huggingface" and isinstance(data := gguf.metadata.get("tokenizer.huggingface.json"), dict):
        from sensorium.backbones.hf_tokenizer import HFPipeline

        return HFPipeline(vocabulary, data, gguf.path)
    raise SensoriumError(
        f"The model file {gguf.path} has a tokenizer of the kind {model!r}; supported are 'gpt2' and 'llama'."
    )
