"""Tokens that a backbone does not have: their trained rows as they are stored beside a composition, and a tokenizer
that knows their names.

A file holds `embeddings` [n, dim], as the backbone's table has its rows (before the factor that some multiply them
with), and `head` [n, dim] where the backbone's output head is not its table. The first new token has the id behind the
backbone's vocabulary. Training and runtime read names through the same `WithNewTokens`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.spec import BackboneSpec
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.errors import SensoriumError, UsageError

Floats = NDArray[np.float32]


class NewRows:
    """A file of rows opened for a backbone.

    Attributes:
        embeddings, head: float32 [n, dim]; the same array where the backbone's head is its table.
        sha256: of the file.

    Raises `SensoriumError` when the file is missing, malformed, or made for another backbone.
    """

    def __init__(self, path: Path, spec: BackboneSpec) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            data = path.read_bytes()
            tensors = load(data)
        except (OSError, SafetensorError, TypeError, KeyError) as error:  # the last two: a dtype that numpy lacks
            raise SensoriumError(
                f"The new tokens {path} cannot be read ({error}); train or fetch them again."
            ) from None
        problem = misfit({name: tensor.shape for name, tensor in tensors.items()}, spec)
        if problem:
            raise SensoriumError(f"The new tokens {path} {problem}; train them for this backbone.")
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise SensoriumError(f"The new tokens {path} hold values in {name} that are not finite; train again.")
        self.path, self.sha256 = path, hashlib.sha256(data).hexdigest()
        self.embeddings: Floats = tensors["embeddings"].astype(np.float32)
        self.head: Floats = self.embeddings if spec.tied else tensors["head"].astype(np.float32)

    def __len__(self) -> int:
        return len(self.embeddings)


def misfit(shapes: dict[str, tuple[int, ...]], spec: BackboneSpec, names: int | None = None) -> str:
    """Why tensors of these shapes are no rows for a backbone (and for so many names), or an empty text."""
    wanted = {"embeddings"} if spec.tied else {"embeddings", "head"}
    if set(shapes) != wanted:
        table = "is its embedding table" if spec.tied else "is a matrix of its own"
        held, needed = (" and ".join(sorted(found)) or "nothing" for found in (shapes, wanted))
        return f"hold {held}, but a backbone whose output head {table} needs {needed}"
    rows = names if names is not None else max(1, *(shape[0] if shape else 0 for shape in shapes.values()))
    for name in sorted(shapes):
        if shapes[name] != (rows, spec.dim):
            given = "x".join(map(str, shapes[name])) or "one number"
            counted = f"{rows} name{'s' * (rows != 1)}" if names is not None else f"{rows} tokens"
            return f"have {name} of shape {given}, but {counted} and this backbone need {rows}x{spec.dim}"
    return ""


def known_name(tokenizer: Tokenizer, names: Iterable[str]) -> str | None:
    """The first of the names that is a token of the tokenizer already, special or not; None where none is."""
    for name in names:
        if tokenizer.has_special(name) or [tokenizer.decode([i]) for i in tokenizer.encode(name)] == [name]:
            return name
    return None


class WithNewTokens(Tokenizer):
    """A backbone's tokenizer that also knows new tokens: by name as special tokens, and in answers by their spelling.

    What a user types stays plain text. Only answers are read so, those of training samples and earlier ones of a
    conversation (`encode_answer`, which `prompt.render` asks for), and in what the model says a name stands for itself.

    Args:
        tokenizer: the backbone's.
        names: of the new tokens.
        first: id of the first, the backbone's number of tokens.

    Raises:
        UsageError: the backbone has a token of that name already.
    """

    def __init__(self, tokenizer: Tokenizer, names: Sequence[str], first: int) -> None:
        known = known_name(tokenizer, names)
        if known is not None:
            raise UsageError(f"The new tokens hold {known!r}, which the backbone has already; choose another name.")
        vars(self).update(vars(tokenizer))
        self.first, self.names = first, {name: first + i for i, name in enumerate(names)}
        self.vocab_size = first + len(self.names)
        self._special = {**self._special, **self.names}
        self._spelled = [name.encode() for name in names]

    def token_bytes(self, token: int) -> bytes:
        """As of `Tokenizer`; of a new token, its name."""
        if self.first <= token < self.vocab_size:
            return self._spelled[token - self.first]
        return super().token_bytes(token)

    def encode_answer(self, text: str) -> list[int]:
        """An answer's text, in which the names of new tokens stand for them."""
        return [token for piece in self._pieces(text) for token in piece]

    def _pieces(self, text: str) -> Iterator[list[int]]:
        while text:
            found = [(text.find(name), -len(name), name) for name in self.names if name in text]
            at, _, name = min(found, default=(len(text), 0, ""))  # the first, and of several there the longest
            if at:
                yield self.encode(text[:at])
            if name:
                yield [self.names[name]]
            text = text[at + len(name) :]
