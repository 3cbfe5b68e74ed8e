"""Losses in chunks: the value and the gradients of the plain ones, and never more logits than a chunk has."""

from __future__ import annotations

import weakref

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy as plain  # noqa: E402
from torch.nn.functional import linear  # noqa: E402

from sensorium.training.objectives.cross_entropy import cross_entropy  # noqa: E402

N, DIM, VOCAB = 23, 8, 37


class Head:
    """A head that keeps count of the positions it is asked for; with a bias, as any other map is allowed."""

    def __init__(self, learns=False, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(VOCAB, DIM, generator=generator).to(dtype).requires_grad_(learns)
        self.bias = torch.randn(VOCAB, generator=generator).to(dtype).requires_grad_(learns)
        self.asked, self.living, self.made = [], [], []

    def logits(self, hidden):
        logits = linear(hidden, self.weight, self.bias).float()
        self.asked.append(len(hidden))
        self.made.append(weakref.ref(logits))
        self.living.append(self.alive())
        return logits

    def alive(self):
        return sum(made() is not None and made().numel() > 0 for made in self.made)


def states(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(N, DIM, generator=generator).to(dtype).requires_grad_()
    weights = torch.rand(N, generator=generator) + 0.5
    return hidden, torch.randint(0, VOCAB, (N,), generator=generator), weights


@pytest.mark.parametrize("learns", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("chunk", [1, 5, N, 64])
def test_chunks_have_the_value_and_the_gradients_of_the_whole(chunk, learns):
    hidden, target, weights = states()
    head, other = Head(learns), Head(learns)
    wanted = [hidden, head.weight, head.bias] if learns else [hidden]
    losses = cross_entropy(head, hidden, target, chunk)
    made = torch.autograd.grad((losses * weights).sum(), wanted)
    reference = plain(other.logits(hidden), target, reduction="none")
    if learns:
        wanted = [hidden, other.weight, other.bias]
    torch.testing.assert_close(losses, reference, rtol=1e-6, atol=1e-6)
    for one, two in zip(made, torch.autograd.grad((reference * weights).sum(), wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert max(head.asked) <= chunk
    assert sum(head.asked) == (2 if learns else 1) * N  # frozen: nothing is computed twice


def test_half_precision_is_as_near_as_the_plain_one_is():
    exact, target, weights = states()
    truth = torch.autograd.grad((plain(Head().logits(exact), target, reduction="none") * weights).sum(), exact)[0]
    head = Head(dtype=torch.bfloat16)
    errors = []
    for loss in (
        lambda h: cross_entropy(head, h, target, 5),
        lambda h: plain(head.logits(h), target, reduction="none"),
    ):
        hidden, _, _ = states(torch.bfloat16)
        gradient = torch.autograd.grad((loss(hidden) * weights).sum(), hidden)[0]
        assert gradient.dtype == torch.bfloat16
        errors.append(float((gradient.float() - truth).norm() / truth.norm()))
    assert errors[0] < 0.02 and errors[0] < 1.5 * errors[1]


def test_logits_of_one_chunk_live_at_a_time_and_none_until_the_backward():
    hidden, target, _ = states()
    head = Head()
    losses = cross_entropy(head, hidden, target, 5)
    assert max(head.living) == 1 and head.alive() == 0
    assert [t.shape for t in losses.grad_fn.saved_tensors] == [(N, DIM)]


def test_without_a_gradient_nothing_is_kept_and_no_target_is_a_loss_of_nothing():
    hidden, target, _ = states()
    with torch.no_grad():
        assert not cross_entropy(Head(), hidden, target, 5).requires_grad
    assert not cross_entropy(Head(), hidden.detach(), target, 5).requires_grad
    nothing = cross_entropy(Head(), hidden[:0], target[:0])
    assert nothing.shape == (0,) and nothing.requires_grad
    nothing.sum().backward()
    assert not hidden.grad.any()


def test_a_trained_head_learns_from_frozen_states():
    hidden, target, _ = states()
    head = Head(learns=True)
    cross_entropy(head, hidden.detach(), target, 5).sum().backward()
    assert head.weight.grad.abs().sum() > 0
