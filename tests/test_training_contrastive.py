"""The contrastive losses: open_clip's definitions, chunks, pairs left out, clamping, two processes like one."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from sensorium.training.contrastive import Temperature, contrastive_loss, gather  # noqa: E402
from tiny_ranks import together  # noqa: E402

KINDS = ("clip", "siglip")


def features(n=12, dim=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def open_clip_clip(image, text, logit_scale):
    """ClipLoss.forward of open_clip (loss.py): the features come normalised, the scale already exponentiated."""
    logits_per_image = logit_scale * image @ text.T
    logits_per_text = logit_scale * text @ image.T
    labels = torch.arange(len(image))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits_per_image, labels) + entropy(logits_per_text, labels)) / 2


def open_clip_siglip(image, text, logit_scale, logit_bias):
    """SigLipLoss._loss of open_clip."""
    logits = logit_scale * image @ text.T + logit_bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype) - torch.ones(len(image), len(image), dtype=logits.dtype)
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)


def reference(kind, image, text, temperature):
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    scale = temperature.logit_scale.exp()
    if kind == "clip":
        return open_clip_clip(image, text, scale)
    return open_clip_siglip(image, text, scale, temperature.logit_bias)


def gradients(loss, *tensors):
    return [g.clone() for g in torch.autograd.grad(loss, tensors)]


def parameters(temperature):
    return list(temperature.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 1, 5, 12, 100])
def test_the_loss_and_its_gradients_are_those_of_open_clip(kind, chunk):
    image, text = features()
    temperature = Temperature(kind).double()
    ours = contrastive_loss(image, text, temperature, chunk=chunk)
    theirs = reference(kind, image, text, temperature)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    learnt = (image, text, *parameters(temperature))
    for a, b in zip(gradients(ours, *learnt), gradients(theirs, *learnt)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_where_the_temperatures_start_and_stay():
    clip, siglip = Temperature("clip"), Temperature("siglip")
    assert float(clip.logit_scale) == pytest.approx(math.log(1 / 0.07)) and clip.logit_bias is None
    assert (float(siglip.logit_scale), float(siglip.logit_bias)) == (pytest.approx(math.log(10)), -10.0)
    for given, kept in ((9.0, math.log(100)), (-3.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            clip.logit_scale.fill_(given)
        clip.clamp()
        assert float(clip.logit_scale) == pytest.approx(kept)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_pair_left_out_counts_neither_way(kind, chunk):
    """The twins of a repeated pair are no wrong answers; the others count twice."""
    image, text = features(6)
    twice = [torch.cat((x, x)) for x in (image, text)]
    unsure = torch.eye(6, dtype=torch.bool).repeat(2, 2)
    unsure = torch.stack((unsure, unsure.T), dim=1)
    temperature = Temperature(kind).double()
    kept = contrastive_loss(*twice, temperature, unsure, chunk)
    if kind == "clip":  # a row of the doubled batch: its own pair, and every other one twice
        i, t = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        logits = temperature.logit_scale.exp() * i @ t.T
        wrong = (~torch.eye(6, dtype=torch.bool)) * math.log(2)
        per_row = [torch.logsumexp(side + wrong, 1).mean() - side.diagonal().mean() for side in (logits, logits.T)]
        wanted = sum(per_row) / 2
    else:
        i, t = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        logits = temperature.logit_scale.exp() * i @ t.T + temperature.logit_bias
        losses = torch.nn.functional.softplus(logits)
        own = torch.nn.functional.softplus(-logits.diagonal())
        wanted = (own + 2 * (losses.sum(1) - losses.diagonal())).mean()
    assert float(kept.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    assert float(contrastive_loss(*twice, temperature)) > float(kept)


def test_a_row_may_not_leave_out_its_own_pair():
    image, text = features(4)
    everything = torch.ones(4, 2, 4, dtype=torch.bool)
    for kind in KINDS:
        loss = contrastive_loss(image, text, Temperature(kind).double(), everything)
        assert torch.isfinite(loss) and (kind == "siglip") == (float(loss) > 0.1)


def largest_saved(forward):
    """Elements of the largest tensor that a forward pass keeps for its backward pass."""
    sizes = [0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        forward()
    return max(sizes)


def test_chunks_bound_the_memory_of_the_backward_pass():
    """Of each chunk only its inputs are kept: no tensor of n x n is saved."""
    image, text = features(64, 4)
    for kind in KINDS:
        temperature = Temperature(kind).double()
        assert largest_saved(lambda t=temperature: contrastive_loss(image, text, t, chunk=8)) < 64**2
        assert largest_saved(lambda t=temperature: contrastive_loss(image, text, t)) == 64**2


def test_one_process_gathers_what_it_has():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather(rows) is rows


def _steps(rank, world, kind):
    """Three steps of two linear heads on half of the pairs each, gradients averaged as the loop does."""
    from sensorium.training.loop import share

    torch.manual_seed(0)
    heads = torch.nn.ModuleList([torch.nn.Linear(5, 4), torch.nn.Linear(6, 4)])
    temperature = Temperature(kind)
    learnt = dict(torch.nn.ModuleList([heads, temperature]).named_parameters())
    optimizer = torch.optim.AdamW(learnt.values(), lr=0.05)
    random = np.random.default_rng(1)
    losses = []
    for _ in range(3):
        pictures, texts = random.normal(size=(8, 5)), random.normal(size=(8, 6))
        unsure = np.stack([(m := random.random((8, 8)) < 0.2), m.T], axis=1)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        features = [torch.from_numpy(x[mine]).float() for x in (pictures, texts)]
        pairs = (head(x) for head, x in zip(heads, features))
        loss = contrastive_loss(*pairs, temperature, torch.from_numpy(unsure[mine]), chunk=3)
        optimizer.zero_grad()
        loss.backward()
        value = float(loss.detach())
        if world > 1:
            value, _ = share(learnt, value, float(len(features[0])), False)
        optimizer.step()
        temperature.clamp()
        losses.append(value)
    return losses, {name: tensor.detach().numpy().copy() for name, tensor in learnt.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(kind):
    alone = _steps(0, 1, kind)
    for losses, tensors in together(_steps, 2, kind):
        np.testing.assert_allclose(losses, alone[0], rtol=1e-4)
        for name, tensor in alone[1].items():
            np.testing.assert_allclose(tensors[name], tensor, rtol=1e-4, atol=1e-6)
