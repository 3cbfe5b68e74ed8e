"""Objectives against definitions written another way, on the tiny backbone or random tensors."""

from __future__ import annotations

import numpy as np
import pytest

import tiny

torch = pytest.importorskip("torch")

from sensorium.backbones.gguf import GGUF  # noqa: E402
from sensorium.backbones.spec import spec_from_gguf  # noqa: E402
from sensorium.backbones.tokenizer import Tokenizer  # noqa: E402
from sensorium.training.backbone import load_llama  # noqa: E402
from sensorium.training.llama import without_lora  # noqa: E402
from sensorium.training.objectives.condition import match_condition  # noqa: E402
from sensorium.training.objectives.ctc import ctc_units, greedy_units  # noqa: E402
from sensorium.training.objectives.distill import distill  # noqa: E402
from sensorium.training.objectives.forward import hidden_states  # noqa: E402
from sensorium.training.objectives.least_squares import LeastSquares  # noqa: E402
from sensorium.training.recipe import LoraRecipe  # noqa: E402
from sensorium.training.rows import Layout, pack, question_branch  # noqa: E402

TOKENS = 3


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    path = tmp_path_factory.mktemp("objectives") / "llm.gguf"
    tiny.write_gguf(path, np.random.default_rng(0))
    torch.manual_seed(0)
    with GGUF(path) as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), LoraRecipe(rank=2, alpha=4.0), torch.float32)
        tokenizer = Tokenizer.from_gguf(gguf)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return llm, tokenizer


def twins(tokenizer):
    """Two rows with two and one questions, and the same behind words in the place of the picture."""
    asked = [[("What is it?", "A cat."), ("A dog?", "No.")], [("How many?", "Two.")]]
    made = [[question_branch(q, a, tokenizer, TOKENS) for q, a in row] for row in asked]
    layout = made[0][0][0]
    branches = [[branch for _, branch in row] for row in made]
    words = [layout.before + tuple(tokenizer.encode(text)) for text in ("a cat", "two dogs here")]
    return pack(layout, branches, 90), pack([Layout(w, 0) for w in words], branches, 90)


def test_a_student_that_reads_the_same_as_its_teacher_has_nothing_to_learn(parts):
    llm, tokenizer = parts
    _, twin = twins(tokenizer)
    with without_lora(llm):
        loss, weight = distill(llm, None, twin, twin)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6) and weight == (twin.labels >= 0).sum()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("end_of_turn", [1.0, 4.0])
def test_distilling_is_the_divergence_written_out(parts, temperature, end_of_turn):
    llm, tokenizer = parts
    rows, twin = twins(tokenizer)
    embeds = torch.randn(2, TOKENS, tiny.DIM, generator=torch.Generator().manual_seed(1))
    loss, weight = distill(llm, embeds, rows, twin, temperature=temperature, end_of_turn=end_of_turn)
    student = llm.logits(hidden_states(llm, embeds, rows)).detach() / temperature
    with without_lora(llm):
        teacher = llm.logits(hidden_states(llm, None, twin)).detach() / temperature
    total = weights = 0.0
    ends = 0
    for r in range(2):
        for one, two in zip(np.flatnonzero(rows.labels[r] >= 0), np.flatnonzero(twin.labels[r] >= 0)):
            p, q = (torch.softmax(x[r, at - 1].double(), -1) for x, at in ((teacher, two), (student, one)))
            ending = rows.labels[r, one] == tokenizer.special("<|im_end|>")
            share = float(rows.weights[r, one]) * (end_of_turn if ending else 1.0)
            total += share * float((p * (p.log() - q.log())).sum()) * temperature**2
            weights += share
            ends += int(ending)
    assert ends == 3
    assert weight == pytest.approx(weights)
    assert float(loss.detach()) == pytest.approx(total / weights, rel=1e-4)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in llm.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in llm.named_parameters() if "lora" in n)
    llm.zero_grad()


def test_other_answers_in_the_twin_are_an_error(parts):
    llm, tokenizer = parts
    rows, _ = twins(tokenizer)
    layout, branch = question_branch("What is it?", "A bird.", tokenizer, TOKENS)
    wrong = pack([Layout(layout.before, 0)] * 2, [[branch], [branch]], 90)
    with pytest.raises(ValueError, match="different answers"):
        distill(llm, torch.zeros(2, TOKENS, tiny.DIM), rows, wrong)


def test_without_lora_is_the_bare_backbone_and_comes_back(parts):
    llm, tokenizer = parts
    _, twin = twins(tokenizer)
    with_lora = hidden_states(llm, None, twin)
    with without_lora(llm):
        bare = hidden_states(llm, None, twin)
    assert not torch.allclose(with_lora, bare, atol=1e-3)
    torch.testing.assert_close(hidden_states(llm, None, twin), with_lora)


def test_least_squares_finds_a_linear_map_and_batches_do_not_matter():
    rng = np.random.default_rng(0)
    x, true = rng.normal(2.0, 3.0, (400, 7)).astype(np.float32), rng.normal(size=(5, 7))
    y = (x @ true.T + 1.5).astype(np.float32)
    whole, parts = LeastSquares(7, 5), LeastSquares(7, 5)
    whole.add(x, y)
    for start in range(0, 400, 64):
        parts.add(x[start : start + 64], y[start : start + 64])
    weight, bias = whole.solve(1e-9)
    np.testing.assert_allclose(weight, true, atol=1e-3)
    np.testing.assert_allclose(bias, 1.5, atol=1e-2)
    for one, two in zip(whole.solve(), parts.solve()):
        np.testing.assert_allclose(one, two, atol=1e-5)
    twice, weighted = LeastSquares(7, 5), LeastSquares(7, 5)
    noisy = y + rng.normal(size=y.shape).astype(np.float32)
    twice.add(np.concatenate((x, x[:50])), np.concatenate((noisy, noisy[:50])))
    weighted.add(x, noisy, np.where(np.arange(400) < 50, 2.0, 1.0))
    np.testing.assert_allclose(twice.solve()[0], weighted.solve()[0], atol=1e-5)


def test_conditions_match_only_when_equal_and_masked_queries_do_not_count():
    rng = torch.Generator().manual_seed(0)
    wanted = torch.randn(3, 4, 6, generator=rng)
    assert float(match_condition(wanted, wanted)[0]) == pytest.approx(0.0, abs=1e-6)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 2] = False
    spoilt = wanted.clone()
    spoilt[0, 2] += 100
    loss, number = match_condition(spoilt, wanted, mask)
    assert float(loss) == pytest.approx(0.0, abs=1e-6) and number == 11
    mean = wanted.mean().expand_as(wanted)
    assert float(match_condition(mean, wanted, cosine=0.0)[0]) == pytest.approx(1.0, rel=0.05)  # variance explained: 0
    with pytest.raises(ValueError, match="no query"):
        match_condition(wanted, wanted, torch.zeros(3, 4, dtype=torch.bool))


def brute_ctc(logits, units, blank=0):
    """Sum of the probabilities of every path that spells ``units``."""
    from itertools import product

    probabilities = torch.softmax(logits.double(), -1)
    total = 0.0
    for path in product(range(logits.shape[1]), repeat=logits.shape[0]):
        merged = [u for i, u in enumerate(path) if (i == 0 or u != path[i - 1]) and u != blank]
        if merged == units:
            total += float(torch.stack([probabilities[t, u] for t, u in enumerate(path)]).prod())
    return -np.log(total)


def test_ctc_sums_over_every_path():
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))
    units = torch.tensor([[1, 1, 3], [2, 0, 0]])
    loss, number = ctc_units(logits, torch.tensor([5, 4]), units, torch.tensor([3, 1]))
    wanted = brute_ctc(logits[0], [1, 1, 3]) + brute_ctc(logits[1, :4], [2])
    assert number == 4 and float(loss) == pytest.approx(wanted / 4, rel=1e-4)
    with pytest.raises(ValueError, match="sample 0 has 4 units and only 3 frames"):
        ctc_units(logits, torch.tensor([3, 4]), units, torch.tensor([3, 1]))


def test_greedy_units_merge_repeats_and_drop_blanks():
    best = [0, 1, 1, 0, 1, 3, 3, 0]
    assert greedy_units(torch.eye(4)[best]) == [1, 1, 3]
    assert greedy_units(torch.zeros(0, 4)) == []
