"""Input side: projected frames -> the tokens that were said, by connectionist temporal classification, without the LLM.

A frame says a token by pointing to its key (`projectors.stack.Words`), and the LLM reads the token's own row of its
embedding table there. The blank is a token, too, one that the LLM reads over when it stands between any words:
SmolLM2-135M answers questions as well with a newline behind each token as without, and no better than by chance with
the mean row there. A pass costs a hundredth of one through the LLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.projectors.stack import Words
from sensorium.training.objectives.ctc import greedy_units


class TokenRows:
    """Which class is which token; class 0 is the blank, class i is ``tokens[i - 1]``.

    Args:
        words: the classes, the blank first.
        tokens: ids of the others.
    """

    def __init__(self, words: Words, tokens: Sequence[int]) -> None:
        self.words, self.tokens = words, list(tokens)
        self.classes = {token: i for i, token in enumerate(self.tokens, start=1)}

    def heard(self, frames: Tensor) -> list[list[int]]:
        """The token ids that frames [B, n, keys] point to, repeats merged and blanks dropped."""
        return [[self.tokens[unit - 1] for unit in greedy_units(each)] for each in self.words(frames)]

    def drawn(self, said: Sequence[Sequence[int]], others: Sequence[int] | None) -> tuple[list[int], int]:
        """Classes that a batch is told from: its own in front, and how many these are; then ``others`` (all where
        None)."""
        own = sorted({self.classes[token] for ids in said for token in ids})
        among = range(1, 1 + len(self.tokens)) if others is None else others
        return own + sorted(set(among) - set(own)), len(own)


def align(
    rows: TokenRows, frames: Tensor, keys: Tensor, among: Sequence[int], own: int, said: Sequence[Sequence[int]]
) -> tuple[Tensor, float]:
    """Mean CTC loss per token.

    Args:
        rows: the classes, for their prior and scale.
        frames: [B, n, keys] projected frames, all of which count.
        keys: [1 + among, keys] of the blank and the classes ``among``.
        among: classes of `TokenRows.drawn`, the first ``own`` of which are the batch's own. The rest stands for all
            that were not drawn: each counts as often as it has been left out.
        said: token ids of each, which fit n positions.

    Returns:
        The loss and the number of tokens.
    """
    count, length, _ = frames.shape
    number, rest, left = sum(map(len, said)), len(among) - own, len(rows.tokens) - own
    # in bfloat16 where autocast has it: there are thousands of classes
    logits = (frames.flatten(0, 1) @ keys.T).float() * rows.words.scale.exp()
    weigh = torch.zeros(1 + len(among))
    weigh[1 + own :] = math.log(max(left, 1) / max(rest, 1))
    logs = F.log_softmax(torch.cat((logits[:, :1] + rows.words.prior, logits[:, 1:]), dim=1) + weigh, dim=-1)
    place = {each: i for i, each in enumerate(among[:own], start=1)}
    # of each sample only the columns of the blank and of its own tokens
    different = [list(dict.fromkeys(place[rows.classes[token]] for token in ids)) for ids in said]
    most = max(map(len, different))
    columns = torch.tensor([[0, *each, *[0] * (most - len(each))] for each in different])
    picked = logs.view(count, length, -1).gather(2, columns[:, None].expand(-1, length, -1))
    targets = [[1 + each.index(place[rows.classes[token]]) for token in ids] for each, ids in zip(different, said)]
    longest = max(map(len, targets))
    padded = torch.tensor([[*each, *[0] * (longest - len(each))] for each in targets])
    loss, shares = _alignments(picked.detach(), padded, torch.tensor([len(each) for each in targets]))
    moved = (shares * (picked.detach() - picked)).sum()  # nothing, with the gradient of the loss
    return (loss + moved) / number, float(number)


def _alignments(picked: Tensor, targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Summed CTC loss of log-probabilities [B, n, columns], and each column's share of all alignments at each frame.

    torch gives probability less share for a gradient, which is right only behind a softmax over these columns alone.
    """
    with torch.enable_grad():
        given = picked.requires_grad_()
        lengths = torch.full((len(picked),), picked.shape[1])
        loss = F.ctc_loss(given.transpose(0, 1), targets, lengths, counts, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, given)
    return loss.detach(), given.detach().exp() - gradient
