"""Input side: projected frames -> the tokens that were said, by connectionist temporal classification, without the LLM.

The logit of a token is how near a frame is to the token's own row of the LLM's embedding table, so frames come to lie
where the LLM expects words. The blank is a token, too, one that the LLM reads over when it stands between any words:
SmolLM2-135M answers questions as well with a newline behind each token as without, and no better than by chance with
the mean row there. A pass costs a hundredth of one through the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.projectors.stack import Words
from sensorium.training.objectives.ctc import greedy_units

CHUNK = 256
"""Frames that have logits at once."""


class TokenRows:
    """Which class is which token; class 0 is the blank, class i is ``tokens[i - 1]``.

    Args:
        words: the rows, the blank's first.
        tokens: ids of the others.
        product: dtype of the products with the table in `align`.
    """

    def __init__(self, words: Words, tokens: list[int], product: torch.dtype = torch.bfloat16) -> None:
        self.words, self.tokens, self.product = words, tokens, product
        self.classes = {token: i for i, token in enumerate(tokens, start=1)}

    @classmethod
    def of(cls, table: Tensor, tokens: list[int], blank: int, product: torch.dtype = torch.bfloat16) -> TokenRows:
        """From the LLM's embedding table [vocab, dim], as it looks rows up, and the id whose row stands for nothing."""
        return cls(Words(table[torch.tensor([blank, *tokens])]), tokens, product)

    def heard(self, frames: Tensor) -> list[list[int]]:
        """The token ids that are nearest to frames [B, n, dim], repeats merged and blanks dropped."""
        return [[self.tokens[unit - 1] for unit in greedy_units(each)] for each in self.words(frames)]


def align(
    rows: TokenRows,
    frames: Tensor,
    said: Sequence[Sequence[int]],
    *,
    pull: float = 0.02,
    others: Sequence[int] | None = None,
) -> tuple[Tensor, float]:
    """Mean CTC loss per token.

    Args:
        rows: the classes.
        frames: [B, n, dim] projected frames, all of which count.
        said: token ids of each, which fit n positions.
        pull: weight of a frame's squared distance from the mean of all rows, weighed by their probabilities, averaged
            over frames. CTC asks only that the right row be the nearest; this asks that it be near.
        others: classes that frames are told from, besides the blank and those of the batch; all where None. A few
            thousand drawn anew each time do, for half of the work.

    Returns:
        The loss and the number of tokens.
    """
    classes = [[rows.classes[token] for token in ids] for ids in said]
    kept = rows.words.table
    if others is not None:
        among = sorted({*others, *(each for own in classes for each in own)} - {0})
        place = {each: i for i, each in enumerate(among, start=1)}
        kept = kept[torch.tensor([0, *among])]
        classes = [[place[each] for each in own] for own in classes]
    loss: Tensor = _NearestRows.apply(frames, rows.words.prior, rows.words.scale, kept, rows.product, classes, pull)
    return loss, float(sum(map(len, said)))


class _NearestRows(torch.autograd.Function):
    """The loss of `align` and its gradient, some samples at a time, so that nothing as large as all logits is kept.

    CTC sees only the columns of a sample's own tokens, with probabilities over all of them. Its gradient with respect
    to a logit is the probability of the class less its share of all alignments; the mean row under the former is what
    `pull` needs as well, so there are two products with the table and no more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        frames: Tensor,
        prior: Tensor,
        log_scale: Tensor,
        table: Tensor,
        product: torch.dtype,
        classes: list[list[int]],
        pull: float,
    ) -> Tensor:
        count, length, _ = frames.shape
        number, scale = sum(map(len, classes)), float(log_scale.exp())
        low = table.to(frames.dtype if frames.dtype == torch.float64 else product)
        half = 0.5 * table.pow(2).sum(-1)
        total, by_frame, by_prior, by_scale = 0.0, torch.empty_like(frames), 0.0, 0.0
        for at in range(0, count, max(1, CHUNK // length)):
            some = slice(at, min(count, at + max(1, CHUNK // length)))
            f = frames[some].flatten(0, 1)
            logits = (f.to(low.dtype) @ low.T).to(f.dtype).sub_(half).mul_(scale)
            logits[:, 0] += prior
            own, of = _columns(classes[some])
            columns = own[:, None].expand(-1, length, -1)
            chosen = logits.view(-1, length, len(half)).gather(2, columns)
            logs = F.log_softmax(logits, dim=-1)
            picked = logs.view(-1, length, len(half)).gather(2, columns)
            loss, shares = _alignments(picked, of)
            total += float(loss)
            chances = logs.exp_()
            means = (chances.to(low.dtype) @ low).to(f.dtype)
            taken = torch.einsum("bnc,bcd->bnd", shares, table[own].to(f.dtype)).flatten(0, 1)
            apart = f - means
            total += pull * number / (count * length) * float(apart.pow(2).sum())
            grad = scale * (means - taken) / number + 2 * pull / (count * length) * apart
            by_frame[some] = grad.view(-1, length, f.shape[1])
            by_prior += float((chances[:, 0] - shares[..., 0].flatten()).sum()) / number
            # of the scale's logarithm: what each logit is without the prior, by how much its probability should change
            expected = scale * ((f * means).sum() - (chances @ half).sum()) - (shares * chosen).sum()
            by_scale += float(expected + float(prior) * shares[..., 0].sum()) / number
        ctx.save_for_backward(by_frame, torch.tensor([by_prior]), torch.tensor([by_scale]))
        return frames.new_tensor(total / number)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        frames, prior, scale = (each * grad for each in ctx.saved_tensors)
        return frames, prior.to(grad.dtype), scale.to(grad.dtype), None, None, None, None


def _columns(classes: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
    """The different classes of each sample behind the blank, [B, most] padded with blanks, and each token's column."""
    different = [list(dict.fromkeys(each)) for each in classes]
    own = torch.zeros(len(classes), 1 + max(map(len, different)), dtype=torch.long)
    for row, each in enumerate(different):
        own[row, 1 : 1 + len(each)] = torch.tensor(each)
    return own, [[1 + each.index(token) for token in tokens] for each, tokens in zip(different, classes)]


def _alignments(picked: Tensor, of: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Summed CTC loss of log-probabilities [B, n, columns], and each column's share of all alignments at each frame."""
    most = max(map(len, of))
    padded = torch.tensor([[*each, *[0] * (most - len(each))] for each in of])
    lengths = torch.full((len(of),), picked.shape[1])
    with torch.enable_grad():
        given = picked.detach().requires_grad_()
        counts = torch.tensor([len(each) for each in of])
        loss = F.ctc_loss(given.transpose(0, 1), padded, lengths, counts, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, given)
    # torch gives probability less share, which is the gradient only behind a softmax over these columns alone
    shares = given.detach().exp() - gradient
    shares[(padded_columns(of, picked.shape[2]))[:, None].expand_as(shares)] = 0.0
    return loss.detach(), shares


def padded_columns(of: Sequence[Sequence[int]], columns: int) -> Tensor:
    """[B, columns]: True where a sample has no class of its own."""
    return torch.arange(columns) > torch.tensor([max(each) for each in of])[:, None]
