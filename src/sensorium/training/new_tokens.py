"""New rows of vocabulary: tokens that a frozen backbone does not have, learnt beside its own table and head.

The rows are parameters of their own, joined to the frozen table at the lookup and to the frozen head at the logits. The
backbone's rows therefore need no gradient, no optimizer state and no hook, and cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.errors import SensoriumError, UsageError
from sensorium.prompt import Tokens

NOISE = 0.02  # standard deviation of a fresh row around the mean row, in those of the table


class NewTokens(nn.Module):
    """Rows behind a vocabulary.

    Args:
        names: of the tokens; the first has the id ``first``, and so on.
        first: the size of the backbone's own vocabulary.
        table: its embedding table [vocab, dim]: fresh rows start near the mean row, so that none is likely or unlikely.
        head: its output head [vocab, dim]; None where it is the table, and then the rows serve both ends, too.
        scale: what the backbone multiplies a row of its table with when it looks it up.
    """

    def __init__(
        self, names: Sequence[str], first: int, table: Tensor, head: Tensor | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.names, self.first, self.scale = tuple(names), first, scale
        self.embeddings = nn.Parameter(_fresh(table, len(self.names)))
        self.head = None if head is None else nn.Parameter(_fresh(head, len(self.names)))

    def embed(self, ids: Tensor, lookup: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., dim] of ids old and new; ``lookup`` serves the old ones."""
        new = ids >= self.first
        known = lookup(ids.masked_fill(new, 0))
        rows = F.embedding((ids - self.first).clamp_min(0), self.embeddings) * self.scale
        return torch.where(new[..., None], rows.to(known.dtype), known)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, new tokens] in float32."""
        rows = self.embeddings if self.head is None else self.head
        return F.linear(hidden, rows.to(hidden.dtype)).float()

    def saved(self) -> dict[str, Tensor]:
        """What `tokens.safetensors` holds: ``embeddings`` [n, dim] as the table has its rows, ``head`` [n, dim] where
        the backbone has a head of its own."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


def _fresh(table: Tensor, rows: int) -> Tensor:
    values = table.detach().float()
    noise = torch.randn(rows, values.shape[1]).to(values.device)
    return values.mean(0) + NOISE * values.std() * noise


class WithNewTokens:
    """A backbone's tokenizer that also knows new tokens: by name as special tokens, and in answers by their spelling.

    Only the answers of training samples are read so (`encode_answer`, which `prompt.render` asks for); what a user
    types stays plain text.

    Args:
        tokenizer: the backbone's.
        names: of the new tokens.
        first: id of the first.

    Raises:
        UsageError: the backbone has a token of that name already.
    """

    def __init__(self, tokenizer: Tokens, names: Sequence[str], first: int) -> None:
        self._tokenizer, self.names = tokenizer, {name: first + i for i, name in enumerate(names)}
        self.add_bos = getattr(tokenizer, "add_bos", False)
        for name in names:
            try:
                tokenizer.special(name)
            except SensoriumError:
                continue
            raise UsageError(f"tokens.names holds {name!r}, which the backbone has already; choose another name.")

    @property
    def bos_id(self) -> int | None:
        """The backbone's."""
        return self._tokenizer.bos_id

    @property
    def eos_id(self) -> int | None:
        """The backbone's."""
        return getattr(self._tokenizer, "eos_id", None)

    def encode(self, text: str) -> list[int]:
        """Plain text alone."""
        return self._tokenizer.encode(text)

    def special(self, name: str) -> int:
        """The id of a special token, old or new."""
        return self.names[name] if name in self.names else self._tokenizer.special(name)

    def encode_answer(self, text: str) -> list[int]:
        """An answer's text, in which the names of new tokens stand for them."""
        return [token for piece in self._pieces(text) for token in piece]

    def _pieces(self, text: str) -> Iterable[list[int]]:
        while text:
            found = [(text.find(name), -len(name), name) for name in self.names if name in text]
            at, _, name = min(found, default=(len(text), 0, ""))  # the first, and of several there the longest
            if at:
                yield self.encode(text[:at])
            if name:
                yield [self.names[name]]
            text = text[at + len(name) :]
