"""`tokenizer.json` of a Hugging Face model, run by the `tokenizers` library without its special tokens.

The pipeline of the file (normaliser, splitting rules, merges) is used as it stands. Only what could turn a user's text
into structure is taken out before the library sees it: special tokens, tokens that look like markers, the template that
adds them, truncation and padding.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.backbones.bpe import byte_of_char
from sensorium.backbones.hf_config import Error
from sensorium.backbones.vocabulary import Kind, Vocabulary
from sensorium.errors import SensoriumError

MODEL = "huggingface"
"""The value of `tokenizer.ggml.model` that means: `tokenizer.huggingface.json` holds the parsed file."""

_SPACE = "\u2581"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_MAX_VOCAB = 1 << 22


def metadata_of(data: Any, options: dict[str, Any], vocab: int, error: Error) -> dict[str, Any]:
    """GGUF metadata of a tokenizer.

    Args:
        data: the parsed `tokenizer.json`.
        options: the parsed `tokenizer_config.json`, `generation_config.json` and `config.json`, the first that holds a
            key winning.
        vocab: rows of the embedding matrix; ids beyond it are refused where text could yield them.

    Raises:
        SensoriumError: the file is damaged, or holds another model than BPE.
    """
    model = data.get("model") if isinstance(data, dict) else None
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(words, dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise error(f"has a tokenizer of the kind {str(kind)[:40]!r} in tokenizer.json; only BPE can be used")
    if vocab > _MAX_VOCAB:
        raise error(f"claims a vocabulary of {vocab} tokens; it is damaged")
    tokens, kinds = [""] * vocab, np.full(vocab, Kind.UNUSED, np.int32)
    for text, token in words.items():
        if type(token) is not int or not 0 <= token < vocab:
            raise error(f"gives the id {str(token)[:40]} to a token, and its embeddings are {vocab}")
        tokens[token] = text
        kinds[token] = Kind.BYTE if model.get("byte_fallback") and _BYTE.fullmatch(text) else Kind.NORMAL
    unknown = model.get("unk_token")
    for text, token, special in _added(data, error):
        if token >= vocab:
            if special:  # a padding token that was never given an embedding; only training would use it
                continue
            raise error(f"gives the id {token} to a token, and its embeddings are {vocab}")
        tokens[token] = text
        kinds[token] = Kind.UNKNOWN if text == unknown else Kind.CONTROL if special else Kind.USER_DEFINED
    found = {text: token for token, text in enumerate(tokens) if text}
    named = {role: _named(options.get(f"{role}_token"), found) for role in ("bos", "eos", "eot", "eom")}
    ends = [value for value in _ids(options.get("eos_token_id")) if value < vocab]
    bos = next(iter(_ids(options.get("bos_token_id"))), None)
    add_bos = options.get("add_bos_token")
    first = _first_of_template(data)
    metadata = {
        "tokenizer.ggml.model": MODEL,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": add_bos if isinstance(add_bos, bool) else first is not None,
        "tokenizer.ggml.eos_token_ids": sorted({*ends, *(token for token in [named["eos"]] if token is not None)}),
        "tokenizer.huggingface.json": data,
    }
    for role, token in (("bos", named["bos"] if named["bos"] is not None else bos), ("eot", named["eot"])):
        if token is not None:
            metadata[f"tokenizer.ggml.{role}_token_id"] = token
    if "tokenizer.ggml.bos_token_id" not in metadata and first in found:
        metadata["tokenizer.ggml.bos_token_id"] = found[first]
    return metadata


class HFPipeline:
    """Text <-> ids by the pipeline of a `tokenizer.json`; see `tokenizer.Algorithm`."""

    def __init__(self, vocabulary: Vocabulary, data: dict[str, Any], path: Path) -> None:
        import json

        from tokenizers import Tokenizer

        self._vocabulary = vocabulary
        kinds = {kind for part in ("pre_tokenizer", "decoder", "normalizer") for kind in _types(data.get(part))}
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and not kinds & {"Metaspace", "ByteFallback", "Replace"}:
            raise SensoriumError(
                f"The tokenizer {path} spells text neither in bytes nor with {_SPACE}; use another model."
            )
        try:
            self._pipeline = Tokenizer.from_str(json.dumps(_plain(data, vocabulary)))
            start = self._pipeline.encode("a", add_special_tokens=False).ids
        except BaseException as error:  # a panic of the library is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            raise SensoriumError(f"The tokenizer {path} cannot be used ({reason}); fetch the model again.") from None
        self.strips_first_space = bool(start) and self.token_bytes(start[0]).startswith(b" ")

    def encode(self, text: str) -> list[int]:
        return list(self._pipeline.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        text, kind = self._vocabulary.tokens[token], self._vocabulary.kinds[token]
        if kind == Kind.BYTE and (match := _BYTE.fullmatch(text)):
            return bytes([int(match[1], 16)])
        if kind == Kind.USER_DEFINED:
            return text.encode("utf-8", "replace")
        if not self._byte_level:
            return text.replace(_SPACE, " ").encode("utf-8", "replace")
        table = byte_of_char()
        return b"".join(table.get(char) or char.encode("utf-8", "replace") for char in text)


def _plain(data: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The file without what text must never yield. What stays of the added tokens keeps its id."""
    model = dict(data["model"])
    matched = set(vocabulary.matched_whole())
    unknown = model.get("unk_token")
    hidden = {text for text in vocabulary.special if text != unknown}
    words = {text: token for text, token in model["vocab"].items() if text not in hidden}
    ids = {text: token for token, text in enumerate(vocabulary.tokens) if text in matched}
    model["vocab"] = {**words, **ids}
    merges = model.get("merges") or []
    gone = hidden & data["model"]["vocab"].keys()
    if gone:
        merges = [merge for merge in merges if not gone & {*_pair(merge), "".join(_pair(merge))}]
    model["merges"] = merges
    if unknown is not None and unknown not in model["vocab"]:
        model["unk_token"] = None
    kept = [copy.copy(token) for token in data.get("added_tokens") or [] if token["content"] in matched]
    for token in kept:
        token["special"] = False
    nothing = {"truncation": None, "padding": None, "post_processor": None, "decoder": None}
    return {**data, **nothing, "model": model, "added_tokens": kept}


def _pair(merge: Any) -> list[str]:
    return [str(part) for part in merge] if isinstance(merge, list) else str(merge).split(" ")


def _added(data: dict[str, Any], error: Error) -> Iterator[tuple[str, int, bool]]:
    """(text, id, special) of each added token."""
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > _MAX_VOCAB:
        raise error("has a list of added tokens in tokenizer.json that is none; it is damaged")
    for token in added:
        fields = token if isinstance(token, dict) else {}
        text, number = fields.get("content"), fields.get("id")
        if not isinstance(text, str) or type(number) is not int or number < 0:
            raise error(f"has an added token {str(token)[:60]} without text or id in tokenizer.json; it is damaged")
        yield text, number, fields.get("special") is True


def _types(part: Any, depth: int = 0) -> Iterator[str]:
    """The types of a pipeline's part and of those inside it."""
    if isinstance(part, dict) and depth < 8:
        yield str(part.get("type"))
        for inner in part.values():
            for item in inner if isinstance(inner, list) else [inner]:
                yield from _types(item, depth + 1)


def _first_of_template(data: dict[str, Any]) -> str | None:
    """The special token that the file's template puts before a text, by its text."""
    processor = data.get("post_processor")
    parts = [processor, *(processor.get("processors") or [])] if isinstance(processor, dict) else []
    for part in parts:
        single = part.get("single") if isinstance(part, dict) else None
        first = (
            single[0].get("SpecialToken")
            if isinstance(single, list) and single and isinstance(single[0], dict)
            else None
        )
        if isinstance(first, dict):
            return str(first.get("id"))
    return None


def _named(value: Any, found: dict[str, int]) -> int | None:
    text = value.get("content") if isinstance(value, dict) else value
    return found.get(text) if isinstance(text, str) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if type(number) is int and number >= 0]
