"""A tokenizer built from a GGUF file's own metadata: text <-> token ids, one special token at a time, and streaming.

Text never yields special tokens: they are left out of the vocabulary that text is matched against, so a user who types
`<|im_start|>` gets those twelve characters. The prompt builder places special tokens by id (`special`).
Byte-level BPE runs in the `tokenizers` library; SentencePiece vocabularies run in `spm.py`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from sensorium.backbones.gguf import GGUF
from sensorium.backbones.spec import end_ids, token_id
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

# Token types (llama.h, llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# A user-defined token that looks like a marker (<think>, <tool_call>, [INST]) is structure, not text; others, such as
# runs of spaces or line breaks, are ordinary vocabulary that happens to be matched before BPE.
_MARKER = re.compile(r"<.*>|\[[A-Z_/]+\]", re.DOTALL)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_CONTRACTIONS}|" + _REST % r"\p{N}{1,3}"
_QWEN2 = f"{_CONTRACTIONS}|" + _REST % r"\p{N}"


class Tokenizer:
    """Text <-> token ids of one model.

    `vocab_size` counts all tokens; `eos_ids` are those after which the model is done. `add_bos` tells whether the model
    was trained with `bos_id` before every text: the prompt builder adds it, `encode` never does.
    """

    def __init__(
        self,
        tokens: list[str],
        types: list[int],
        encode: Callable[[str], list[int]],
        token_bytes: Callable[[str, int], bytes],
        eos_ids: frozenset[int],
        bos_id: int | None,
        add_bos: bool,
    ) -> None:
        self.vocab_size = len(tokens)
        self.eos_ids = eos_ids
        self.bos_id = bos_id
        self.add_bos = add_bos
        self._tokens, self._types = tokens, types
        self._encode, self._token_bytes = encode, token_bytes
        self._special = {text: i for i, (text, kind) in enumerate(zip(tokens, types)) if _is_special(text, kind)}
        self._special_ids = frozenset(self._special.values())

    @classmethod
    def from_gguf(cls, gguf: GGUF) -> Tokenizer:
        """Raises `SensoriumError` when the file's tokenizer is missing, damaged or of a kind that is not supported."""
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise SensoriumError(f"The model file {gguf.path} holds no tokenizer; use a conversion that does.")
        raw_types = gguf.metadata.get("tokenizer.ggml.token_type")
        types = [NORMAL] * len(tokens) if raw_types is None else [int(kind) for kind in raw_types]
        if len(types) != len(tokens):
            raise SensoriumError(
                f"The model file {gguf.path} types {len(types)} of {len(tokens)} tokens; it is damaged."
            )
        model = gguf.metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise SensoriumError(f"The model file {gguf.path} has a {model!r} tokenizer; supported is 'gpt2'.")
        bpe = _byte_level_bpe(gguf, tokens, types)
        return cls(
            tokens,
            types,
            encode=lambda text: bpe.encode(text, add_special_tokens=False).ids,
            token_bytes=_byte_level_bytes,
            eos_ids=end_ids(gguf, len(tokens)),
            bos_id=token_id(gguf, "bos", len(tokens)),
            add_bos=bool(gguf.metadata.get("tokenizer.ggml.add_bos_token", False)),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone: no special token, no beginning-of-text token. Lone surrogates become U+FFFD."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._encode(text)

    def special(self, name: str) -> int:
        """The id of a special token by its exact name, such as "<|im_start|>"; any other is a `SensoriumError`."""
        if name not in self._special:
            raise SensoriumError(f"The tokenizer has no special token {name!r}; choose the model's own chat template.")
        return self._special[name]

    def is_special(self, token: int) -> bool:
        """Whether the id is a control token, which `decode` leaves out."""
        return token in self._special_ids

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text, in UTF-8 (perhaps a part of a character); empty for special tokens."""
        if not 0 <= token < self.vocab_size:
            raise SensoriumError(
                f"The token id {token} is outside the vocabulary of {self.vocab_size}; check the model."
            )
        if token in self._special_ids:
            return b""
        return self._token_bytes(self._tokens[token], self._types[token])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens; bytes that form no character become U+FFFD."""
        return b"".join(self.token_bytes(int(token)) for token in ids).decode("utf-8", "replace")

    def stream(self) -> Detokenizer:
        """A fresh streaming decoder: the concatenation of its outputs equals `decode` of all ids."""
        return Detokenizer(self)


class Detokenizer:
    """Turns ids into text as they arrive, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(int(token)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, usually nothing. The decoder starts afresh."""
        return self._decoder.decode(b"", final=True)


def _is_special(text: str, kind: int) -> bool:
    return kind in (UNKNOWN, CONTROL) or (kind == USER_DEFINED and _MARKER.fullmatch(text) is not None)


def _byte_level_bpe(gguf: GGUF, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """The `tokenizers` pipeline of a "gpt2" vocabulary: pre-tokenizer by name, then BPE without any special token."""
    from tokenizers import AddedToken, models, normalizers
    from tokenizers import Tokenizer as Pipeline

    name = gguf.metadata.get("tokenizer.ggml.pre", "default")
    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise SensoriumError(f"The model file {gguf.path} holds a BPE tokenizer without merges; it is damaged.")
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, types)) if kind == NORMAL}
    # From the second character on, as llama.cpp does: a merge's first part is never empty.
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in merges if (cut := merge.find(" ", 1)) > 0]
    try:
        # Llama 3 takes a word that is a token as it stands, even where its merges would not build it.
        pipeline = Pipeline(models.BPE(vocab, pairs, ignore_merges=name == "llama-bpe"))
    except Exception as error:
        raise SensoriumError(
            f"The model file {gguf.path} has merges that do not fit its vocabulary ({error})."
        ) from error
    pipeline.pre_tokenizer = _pre_tokenizer(str(name), gguf)
    if name == "qwen2":
        pipeline.normalizer = normalizers.NFC()
    matched = [AddedToken(text, normalized=False) for text, kind in zip(tokens, types) if kind == USER_DEFINED]
    pipeline.add_tokens([token for token in matched if not _MARKER.fullmatch(token.content)])
    return pipeline


def _pre_tokenizer(name: str, gguf: GGUF) -> PreTokenizer:
    """The splitting rules by their GGUF name (llama-vocab.cpp); unknown names are refused: a near miss is silent."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if name in ("smollm", "starcoder", "refact", "command-r", "codeshell"):
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in ("gpt-2", "gpt2"):
        return ByteLevel(add_prefix_space=False)
    patterns = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2}
    if name in patterns:
        split = Split(Regex(patterns[name]), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    raise SensoriumError(
        f"The model file {gguf.path} splits text by the rules {name!r}; "
        "supported are smollm, gpt-2, llama-bpe and qwen2."
    )


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """GPT-2's table from printable stand-in characters to bytes (`bytes_to_unicode` in openai/gpt-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(printable)))})
    return table


def _byte_level_bytes(token: str, kind: int) -> bytes:
    if kind == USER_DEFINED:
        return token.encode("utf-8", "replace")
    table = _byte_of_char()
    # A character outside the table can only come from a damaged vocabulary; keep it visible.
    return b"".join(bytes([table[char]]) if char in table else char.encode("utf-8", "replace") for char in token)
