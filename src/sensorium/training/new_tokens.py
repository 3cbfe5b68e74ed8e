"""New rows of vocabulary: tokens that a frozen backbone does not have, learnt beside its own table and head.

The rows are parameters of their own, joined to the frozen table at the lookup and to the frozen head at the logits. The
backbone's rows therefore need no gradient, no optimizer state and no hook, and cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
