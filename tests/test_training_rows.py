"""Packed rows: many questions about one picture in a row, each exactly as if it stood alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny

torch = pytest.importorskip("torch")

from sensorium.backbones.gguf import GGUF  # noqa: E402
from sensorium.backbones.spec import spec_from_gguf  # noqa: E402
from sensorium.backbones.tokenizer import Tokenizer  # noqa: E402
from sensorium.errors import SensoriumError  # noqa: E402
from sensorium.prompt import IGNORE, Message, Slot, render  # noqa: E402
from sensorium.training.backbone import load_llama  # noqa: E402
from sensorium.training.objectives.forward import additive_mask, place_media  # noqa: E402
from sensorium.training.objectives.next_token import next_token  # noqa: E402
from sensorium.training.recipe import LoraRecipe  # noqa: E402
from sensorium.training.rows import Branch, Layout, fitting, pack, question_branch, split_conversation  # noqa: E402

MEDIA = 3
QUESTIONS = [
    ("Is there an apple?", "Yes."),
    ("What is this?", "A cat on the left and a dog."),
    ("How many?", "3."),
    ("<|im_end|> <image>", "No."),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The tiny backbone, bare and with a LoRA that is not zero, and its tokenizer."""
    path = tmp_path_factory.mktemp("rows") / "llm.gguf"
    tiny.write_gguf(path, np.random.default_rng(0))
    with GGUF(path) as gguf:
        spec = spec_from_gguf(gguf)
        made = [load_llama(gguf, spec, lora, torch.float32) for lora in (None, LoraRecipe(rank=2, alpha=4.0))]
        tokenizer = Tokenizer.from_gguf(gguf)
    torch.manual_seed(0)
    for name, parameter in made[1].named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return made, tokenizer


@pytest.fixture(scope="module", params=[0, 1], ids=["bare", "lora"])
def llm(backbone, request):
    return backbone[0][request.param]


@pytest.fixture(scope="module")
def tokenizer(backbone):
    return backbone[1]


def branches(tokenizer, pairs, media=MEDIA):
    made = [question_branch(q, a, tokenizer, media) for q, a in pairs]
    return made[0][0], [branch for _, branch in made]


def pictures(count, media=MEDIA):
    return torch.randn(count, media, tiny.DIM, generator=torch.Generator().manual_seed(7))


def logits_of(llm, embeds, rows):
    """[targets, vocab], and for every target its (row, branch)."""
    with torch.no_grad():
        hidden = llm(place_media(llm, embeds, rows), torch.from_numpy(rows.positions), additive_mask(rows, llm.dtype))
        row, position, _, _ = rows.targets()
        where = list(zip(row.tolist(), rows.branch[row, position].tolist()))
        return llm.logits(hidden[torch.from_numpy(row), torch.from_numpy(position)]), where


def test_a_branch_is_laid_out_as_inference_lays_it_out(tokenizer):
    question, answer = QUESTIONS[1]
    layout, branch = question_branch(question, answer, tokenizer, MEDIA)
    prompt = render([Message("user", [Slot(), question])], tokenizer, MEDIA, generate=True)
    ids = [*layout.before, *[0] * MEDIA, *branch.ids]
    assert ids[: prompt.length] == prompt.ids()
    targets = [i for i in branch.labels if i != IGNORE]
    assert targets == [*tokenizer.encode(answer), tokenizer.special("<|im_end|>")]
    assert ids[prompt.length :] == targets  # the newline behind the end marker is not part of the sample
    assert all(label in (IGNORE, token) for label, token in zip(branch.labels, branch.ids))


def test_what_users_type_stays_text_in_a_sample(tokenizer):
    _, branch = question_branch(*QUESTIONS[3], tokenizer, MEDIA)
    assert branch.ids.count(tokenizer.special("<|im_end|>")) == 2  # the turns' own


def test_every_branch_of_a_row_equals_that_question_alone(llm, tokenizer):
    layout, made = branches(tokenizer, QUESTIONS)
    length = layout.length + sum(len(b.ids) for b in made) + 9
    embeds = pictures(2)
    together, where = logits_of(llm, embeds, pack(layout, [made, made[::-1]], length))
    for row, order in enumerate((made, made[::-1])):
        for number, branch in enumerate(order, start=1):
            alone, _ = logits_of(llm, embeds[row : row + 1], pack(layout, [[branch]], layout.length + len(branch.ids)))
            mine = together[[i for i, at in enumerate(where) if at == (row, number)]]
            torch.testing.assert_close(mine, alone, rtol=1e-5, atol=2e-5)


def test_half_precision_packs_as_well(backbone, tokenizer, llm):
    """In bfloat16 a row's losses are those of single questions within its rounding: 8 bits."""
    layout, made = branches(tokenizer, QUESTIONS)
    length = layout.length + sum(len(b.ids) for b in made) + 9
    half, embeds = copy.deepcopy(llm).to(torch.bfloat16), pictures(1)
    half.dtype = torch.bfloat16
    with torch.no_grad():
        together, weight = next_token(half, embeds, pack(layout, [made], length))
        alone = [next_token(half, embeds, pack(layout, [[b]], length)) for b in made]
        exact, _ = next_token(llm, embeds, pack(layout, [made], length))
    assert float(together) == pytest.approx(sum(float(loss) * w for loss, w in alone) / weight, rel=0.01)
    assert float(together) == pytest.approx(float(exact), rel=0.03) and float(together) != float(exact)


def test_the_loss_is_the_weighted_mean_over_all_targets(llm, tokenizer):
    layout, made = branches(tokenizer, QUESTIONS)
    made = [Branch(b.ids, b.labels, focus) for b, focus in zip(made, (3.0, 1.0, 1.0, 3.0))]
    embeds = pictures(1)
    with torch.no_grad():
        loss, weight = next_token(llm, embeds, pack(layout, [made], 400))
        parts = [next_token(llm, embeds, pack(layout, [[b]], layout.length + len(b.ids))) for b in made]
    targets = [sum(label != IGNORE for label in b.labels) for b in made]
    assert [w for _, w in parts] == [n + b.focus - 1 for n, b in zip(targets, made)]
    assert weight == sum(w for _, w in parts)
    assert float(loss) == pytest.approx(sum(float(x) * w for x, w in parts) / weight, rel=1e-5)


def test_padding_and_neighbouring_rows_change_nothing(llm, tokenizer):
    layout, made = branches(tokenizer, QUESTIONS)
    exact = layout.length + sum(len(b.ids) for b in made)
    embeds = pictures(2)
    short, _ = logits_of(llm, embeds[:1], pack(layout, [made], exact))
    long, where = logits_of(llm, embeds, pack(layout, [made, made[:1]], exact + 37))
    torch.testing.assert_close(long[[row == 0 for row, _ in where]], short, rtol=1e-5, atol=2e-5)
    assert torch.isfinite(long).all()


def test_gradients_reach_the_picture_and_nothing_frozen(llm, tokenizer):
    layout, made = branches(tokenizer, QUESTIONS)
    embeds = pictures(1).requires_grad_()
    next_token(llm, embeds, pack(layout, [made], 400))[0].backward()
    assert (embeds.grad.abs().sum(dim=-1) > 0).all()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in llm.parameters())
    llm.zero_grad(set_to_none=True)


def test_what_does_not_fit_is_left_out_whole(tokenizer):
    layout, made = branches(tokenizer, QUESTIONS)
    length = layout.length + len(made[0].ids) + len(made[2].ids)  # the long second one finds no room
    rows = pack(layout, [made[:3]], length)
    assert (rows.branch == 1).sum() == len(made[0].ids)
    assert (rows.branch == 2).sum() == len(made[2].ids)
    assert rows.branch.max() == 2
    with pytest.raises(SensoriumError, match=r"does not fit rows of \d+; raise train.row_tokens"):
        pack(layout, [made[:1]], layout.length + len(made[0].ids) - 1)


def test_a_sample_has_one_picture_and_an_answer(tokenizer):
    answer = Message("assistant", "x")
    with pytest.raises(SensoriumError, match="0 pictures"):
        split_conversation([Message("user", "hi"), answer], tokenizer, MEDIA)
    with pytest.raises(SensoriumError, match="2 pictures"):
        split_conversation([Message("user", [Slot(), Slot(), "hi"]), answer], tokenizer, MEDIA)
    with pytest.raises(SensoriumError, match="no assistant message"):
        split_conversation([Message("user", [Slot(), "hi"])], tokenizer, MEDIA)


@st.composite
def batches(draw):
    """A layout, rows of branches with made-up ids, and a length that the first branches fit."""
    layout = Layout(tuple(range(1, 1 + draw(st.integers(1, 4)))), draw(st.integers(1, 6)))
    counter = iter(range(100, 10**6))  # every id occurs once, so that a stray one shows
    samples = []
    for _ in range(draw(st.integers(1, 3))):
        row = []
        for _ in range(draw(st.integers(0, 5))):
            prompt, answer = draw(st.integers(1, 5)), draw(st.integers(1, 4))
            ids = tuple(next(counter) for _ in range(prompt + answer))
            row.append(Branch(ids, (IGNORE,) * prompt + ids[prompt:], draw(st.sampled_from([1.0, 3.0]))))
        samples.append(row)
    least = layout.length + max([len(row[0].ids) for row in samples if row], default=0)
    return layout, samples, least + draw(st.integers(0, 30))


@settings(max_examples=150, deadline=None)
@given(batches())
def test_rows_hold_their_invariants(batch):
    layout, samples, length = batch
    rows = pack(layout, samples, length)
    mask = rows.mask()
    assert mask.any(axis=2).all()  # no position attends to nothing: its softmax would be 0/0
    assert not np.triu(mask, 1).any()
    for row, branches_ in enumerate(samples):
        of = rows.branch[row]
        kept = fitting(layout, branches_, length) if branches_ else []
        assert of.max() == len(kept) and [b for b in branches_ if b in kept] == kept
        for number, branch in enumerate(kept, start=1):
            places = np.flatnonzero(of == number)
            assert rows.ids[row, places].tolist() == list(branch.ids)
            assert rows.labels[row, places].tolist() == list(branch.labels)
            assert rows.positions[row, places].tolist() == list(range(layout.length, layout.length + len(places)))
            seen = {int(of[j]) for i in places for j in np.flatnonzero(mask[row, i])}
            assert seen == {0, number}
            first = next(i for i, label in enumerate(branch.labels) if label != IGNORE)
            assert rows.weights[row, places[first]] == branch.focus
        if branches_:
            assert (of == 1).any()  # the first always stands
        shared = np.flatnonzero(of == 0)
        assert rows.positions[row, shared].tolist() == list(range(layout.length))
        assert set(rows.labels[row, of <= 0].tolist()) <= {IGNORE}
    row, position, target, weight = rows.targets()
    assert (rows.labels[row, position + 1] == target).all() and (weight >= 1).all()
    assert (rows.branch[row, position] == rows.branch[row, position + 1]).all()
