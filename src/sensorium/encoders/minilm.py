"""MiniLM as a sentence encoder: texts to one vector each (the mean over the tokens), on ONNX Runtime alone.

Wang et al. 2020 (arXiv 2002.10957) distilled the encoder; how a sentence is read off it is from Reimers and Gurevych
2019 (arXiv 1908.10084). Nothing of the published package runs: its safetensors become a graph here, its
`tokenizer.json` is read by `tokenizers`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.encoders import base
from sensorium.encoders import bert_graph as graph
from sensorium.encoders.session import FINGERPRINT, open_session
from sensorium.encoders.tensors import read_bytes, read_safetensors
from sensorium.errors import SensoriumError, UsageError

LONGEST = 128
"""Tokens of a text, as in training; what is beyond is left out."""

_LAYER = "last;mean-of-tokens;v1"  # bump when anything between texts and features changes
_GRAPH_VERSION = 1
_BATCH = 32
_MAX_TOKENIZER = 16 << 20


class MiniLM:
    """A frozen sentence encoder.

    Args:
        weights: `model.safetensors` of a BERT with heads of 32 (all-MiniLM-L6-v2: 6 layers, width 384).
        tokenizer: its `tokenizer.json`; the file beside the weights by default.
        threads: threads of one ``encode_text``; ``None`` leaves it to ONNX Runtime.

    Attributes:
        spec: of the pooled vector: one feature a text.
        sequence: of the features of every token.

    Raises:
        UsageError: threads are no such number.
        SensoriumError: the files are not those.
    """

    def __init__(self, weights: Path | str, tokenizer: Path | str | None = None, threads: int | None = None) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise UsageError(f"{threads!r} threads cannot run; use 1 or more, or leave it out.")
        self._weights = Path(weights)
        source = Path(tokenizer) if tokenizer else self._weights.with_name("tokenizer.json")
        words = read_bytes(source, _MAX_TOKENIZER)
        self._tokenizer = _tokenizer(words, source)
        self._tokens_digest = hashlib.sha256(words).hexdigest()
        digest = hashlib.sha256(f"{_identity(self._weights)};{self._tokens_digest}".encode()).hexdigest()
        try:
            self._session = open_session(f"minilm-v{_GRAPH_VERSION}-{digest[:32]}", self._build, threads)
        except SensoriumError as error:
            raise SensoriumError(f"{weights}: {error}") from None
        fingerprint = self._session.get_modelmeta().custom_metadata_map[FINGERPRINT]
        dim = self._session.get_outputs()[1].shape[1]
        self.spec = base.FeatureSpec(dim, base.Vector(), None, fingerprint)
        self.sequence = base.FeatureSpec(dim, base.Sequence(), None, fingerprint)

    def _build(self) -> bytes:
        tensors = read_safetensors(self._weights)
        shape = graph.shape_of(tensors)
        weights = graph.checked(tensors, shape)
        if self._tokenizer.get_vocab_size() > shape.vocabulary or shape.positions < LONGEST:
            raise SensoriumError(f"the tokenizer does not fit {shape.vocabulary} words and {shape.positions} places.")
        return graph.build(weights, shape, {FINGERPRINT: self.fingerprint_of(weights)})

    def fingerprint_of(self, weights: Mapping[str, np.ndarray]) -> str:
        """The fingerprint that this encoder has with such weights. Raises SensoriumError for those of no BERT."""
        shape = graph.shape_of(weights)
        digest = hashlib.sha256(f"bert;{shape};{_LAYER};{LONGEST};{self._tokens_digest}".encode())
        for name, array in graph.checked(weights, shape).items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """One vector a text, not normalised: float32 [N, dim]. N may be 0.

        A text's vector does not depend on the texts beside it, up to rounding (1e-6).

        Raises:
            UsageError: one of them is no text.
        """
        pooled = np.zeros((len(texts), self.spec.dim), np.float32)
        for places, ids, mask in self._batches(texts):
            pooled[places] = self._session.run(["pooled"], {"ids": ids, "mask": mask})[0]
        return pooled

    def encode_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The features of every token of each text, its two marks included: float32 [tokens, dim] each."""
        found: list[np.ndarray] = [np.zeros((0, self.spec.dim), np.float32)] * len(texts)
        for places, ids, mask in self._batches(texts):
            sequence = self._session.run(["sequence"], {"ids": ids, "mask": mask})[0]
            for row, place in enumerate(places):
                found[place] = sequence[row, : int(mask[row].sum())]
        return found

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, its two marks included, at most `LONGEST`.

        Raises:
            UsageError: one of them is no text.
        """
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"the sentence encoder was given {type(text).__name__}; give it texts.")
        # a lone surrogate is no Unicode, and the tokenizer takes nothing else
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return [each.ids for each in self._tokenizer.encode_batch(clean)] if clean else []

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """(places, ids, mask) of texts of like length, so that little is padding."""
        encoded = self.tokenize(texts)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            yield places, *padded([encoded[i] for i in places])


def padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of some texts as a batch: ids int64 [B, T], mask float32 [B, T] (1 for a token, 0 for padding)."""
    length = max(map(len, rows))
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.float32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    return ids, mask


def _tokenizer(data: bytes, path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        json.loads(data)
        made: Any = Tokenizer.from_str(data.decode())
        made.no_padding()
        made.enable_truncation(LONGEST)
        if not made.encode("a").ids:
            raise ValueError("it gives no tokens")
        return made
    except Exception as error:  # tokenizers raises Exception itself
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SensoriumError(f"{path} is no tokenizer.json ({reason}); name that of the model.") from None


def _identity(path: Path) -> str:
    """Of the weights, without reading 90 MB at each start: the header, the last bytes, size and time."""
    try:
        facts = path.stat()
        with path.open("rb") as file:
            head = file.read(1 << 16)
            file.seek(max(0, facts.st_size - (1 << 16)))
            return hashlib.sha256(head + file.read() + f"{facts.st_size};{facts.st_mtime_ns}".encode()).hexdigest()
    except OSError as error:
        raise SensoriumError(f"{path} cannot be read ({error.strerror}); correct the path.") from None
