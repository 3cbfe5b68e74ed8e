"""Layout and packing: labels from the template, and a packed sample's loss is that of the sample alone."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import format_files
import tiny
import tiny_llm
from format_files import COLOURS, pictures, write_lines
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.errors import SensoriumError
from sensorium.prompt import IGNORE, Message, Slot, render
from sensorium.training.data.formats.encode import SampleError, encode
from sensorium.training.data.formats.packing import best_fit, pack
from sensorium.training.data.formats.readers import open_set
from sensorium.training.data.formats.sample import MediaRef, Sample

TOKENS = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm") / "llm.gguf"
    tiny.write_gguf(path, np.random.default_rng(0))
    with GGUF(path) as gguf:
        return Tokenizer.from_gguf(gguf)


def sample(*turns, name="s"):
    """From ("user", "text", pictures), ("assistant", "text"), ..."""
    return Sample(
        name,
        tuple(
            Message(role, [*(MediaRef(f"{name}.{i}") for i in range(sum(count))), text]) for role, text, *count in turns
        ),
        f"{name}.jsonl, line 1",
    )


CASES = [
    sample(("user", "What is it?", 1), ("assistant", "An apple."), name="one"),
    sample(("user", "Hello"), ("assistant", "Hi."), name="text"),
    sample(("user", "Compare.", 2), ("assistant", "Alike."), ("user", "Sure?"), ("assistant", "Yes."), name="turns"),
    sample(
        ("system", "Be brief."), ("user", "A?", 1), ("assistant", "a"), ("user", "B?", 2), ("assistant", "b"), name="m"
    ),
    sample(("system", "Rhyme."), ("user", "The"), ("assistant", "a\nb <|im_end|> <image>"), name="marks"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda s: s.id)
def test_the_layout_is_that_of_the_prompt(case, tokenizer):
    encoded = encode(case, tokenizer, TOKENS)
    plain = [Message(m.role, [*(Slot() for _ in m.media), m.text]) for m in case.messages]
    rendered = render(plain, tokenizer, TOKENS, generate=False)
    ids, labels = rendered.ids(), rendered.labels()
    assert encoded.ids.tolist() == ids[: encoded.length] and encoded.labels.tolist() == labels[: encoded.length]
    assert all(label == IGNORE for label in labels[encoded.length :]) and encoded.labels[-1] != IGNORE
    assert list(encoded.places) == rendered.media_positions() and encoded.media == case.media
    # what is learnt is the answers and their end marks, and nothing else
    end = tokenizer.special("<|im_end|>")
    learnt = [int(label) for label in encoded.labels if label != IGNORE]
    assert learnt == [i for answer in case.answers for i in (*tokenizer.encode(answer), end)]
    # and inference arrives at the first answer by the same ids
    before = next(i for i, message in enumerate(plain) if message.role == "assistant")
    prompt = render(plain[:before], tokenizer, TOKENS).ids()
    assert encoded.ids[: len(prompt)].tolist() == prompt or any(m.media for m in plain[before:])


def test_turns_behind_the_last_answer_are_left_off(tokenizer):
    left = encode(sample(("user", "A", 1), ("assistant", "b"), ("user", "C", 1)), tokenizer, TOKENS)
    assert len(left.media) == len(left.places) == 1 and left.labels[-1] == tokenizer.special("<|im_end|>")


def test_a_sample_that_cannot_be_learnt_names_itself(tokenizer):
    for turns, kind, says in [
        ([("user", "Hi")], "no answer", "no assistant turn"),
        ([("user", "Hi"), ("assistant", "")], "empty answer", "Answer 1"),
        ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " \n")], "empty answer", "Answer 2"),
        ([("user", "Hi", 9), ("assistant", "b")], "too long", "36 are its 9 pictures, and 20 fit"),
    ]:
        with pytest.raises(SampleError, match=f"'bad' .bad.jsonl, line 1.*{says}|{says}.*'bad'") as caught:
            encode(sample(*turns, name="bad"), tokenizer, TOKENS, limit=20)
        assert caught.value.kind == kind
    exact = encode(CASES[0], tokenizer, TOKENS).length
    assert encode(CASES[0], tokenizer, TOKENS, limit=exact).length == exact
    with pytest.raises(SampleError):
        encode(CASES[0], tokenizer, TOKENS, limit=exact - 1)


def test_each_medium_has_its_own_count(tokenizer):
    case = CASES[3]
    encoded = encode(case, tokenizer, lambda medium: 2 + int(medium.name[-1]))
    assert [end - start for start, end in encoded.places] == [2, 2, 3]


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(50, 120))
def test_best_fit_places_everything_once_in_few_rows(lengths, budget):
    rows = best_fit(lengths, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= budget for row in rows)
    assert len(rows) <= -(-11 * -(-sum(lengths) // budget) // 9) + 1 or sum(lengths) / len(rows) > budget / 2


def test_rows_hold_documents(tokenizer):
    encoded = [encode(case, tokenizer, TOKENS) for case in CASES]
    rows = pack([encoded[:3], encoded[3:]], 300)
    mask = rows.mask()
    for row in range(2):
        for i in range(300):
            seen = np.flatnonzero(mask[row, i])
            assert (rows.branch[row, seen] == rows.branch[row, i]).all() and seen.max() == i
            if rows.branch[row, i] >= 0:
                assert len(seen) == rows.positions[row, i] + 1
    assert [m.name for m in rows.media] == [m.name for e in encoded for m in e.media]
    assert all((rows.ids[row, start:end] == 0).all() for row, start, end in rows.places)
    with pytest.raises(SensoriumError, match="'turns' does not fit"):
        pack([encoded[:3]], sum(e.length for e in encoded[:3]) - 1)


# With a backbone ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llms(tmp_path_factory):
    """The tiny random backbone, bare and with a LoRA that is not zero."""
    torch = pytest.importorskip("torch")
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.training.backbone import load_llama
    from sensorium.training.recipe import LoraRecipe

    path = tiny_llm.write_gguf(tmp_path_factory.mktemp("llm") / "llm.gguf")
    with GGUF(path) as gguf:
        spec = spec_from_gguf(gguf)
        made = {"bare": load_llama(gguf, spec, None, torch.float32)}
        made["lora"] = load_llama(gguf, spec, LoraRecipe(rank=4, alpha=8), torch.float32)
    torch.manual_seed(0)
    for name, parameter in made["lora"].named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def losses_of(llm, embeds, rows, encoded):
    """{sample: its targets' losses} of packed rows."""
    from sensorium.training.data.formats.objective import target_losses

    losses = target_losses(llm, embeds, rows).detach().numpy()
    row, position, _, _ = rows.targets()
    document = rows.branch[row, position]
    return {
        name: losses[(row == r) & (document == n)]
        for r, names in enumerate(rows.samples)
        for n, name in enumerate(names, start=1)
    }


@pytest.mark.parametrize("kind", ["bare", "lora"])
def test_a_packed_loss_is_that_of_the_sample_alone(llms, tokenizer, kind):
    import torch

    llm = llms[kind]
    encoded = [encode(case, tokenizer, TOKENS) for case in CASES]
    embeds = torch.randn(sum(len(e.media) for e in encoded), TOKENS, tiny_llm.DIM, generator=torch.manual_seed(1))
    where = np.cumsum([0, *(len(e.media) for e in encoded)])
    alone = {}
    for i, one in enumerate(encoded):
        alone |= losses_of(llm, embeds[where[i] : where[i + 1]], pack([[one]], one.length), encoded)
    for order in ([[0, 1, 2], [3, 4]], [[4, 3, 2, 1, 0]], [[1], [2, 0], [4], [3]]):
        rows = pack([[encoded[i] for i in row] for row in order], 400)
        taken = torch.cat([embeds[where[i] : where[i + 1]] for row in order for i in row])
        packed = losses_of(llm, taken, rows, encoded)
        assert packed.keys() == alone.keys()
        for name, losses in packed.items():
            np.testing.assert_allclose(losses, alone[name], rtol=2e-5, atol=2e-5, err_msg=name)
    assert min(len(losses) for losses in alone.values()) > 1 and all((v > 0.1).any() for v in alone.values())


@pytest.mark.parametrize("fault", ["mask", "positions"])
def test_the_parity_notices_a_leak(llms, tokenizer, fault, monkeypatch):
    """nanoVLM #201: with the mask or the positions of one long document, the losses differ."""
    import torch

    from sensorium.training.data.formats.packing import PackedRows

    one, two = (encode(CASES[i], tokenizer, TOKENS) for i in (1, 4))
    rows, none = pack([[one, two]], 200), torch.zeros(0, TOKENS, tiny_llm.DIM)
    right = losses_of(llms["bare"], none, rows, [one, two])
    if fault == "mask":
        monkeypatch.setattr(PackedRows, "mask", lambda self: np.tril(np.ones((1, 200, 200), bool)))
    else:
        # Rotary attention knows differences alone, so a shift of a whole document changes nothing: mix them instead.
        rows.positions[0, one.length :] *= 2
    wrong = losses_of(llms["bare"], none, rows, [one, two])
    assert np.allclose(wrong["text"], right["text"], atol=1e-5)
    assert not np.allclose(wrong["marks"], right["marks"], atol=1e-3)


def test_gradients_reach_projector_and_lora_as_unpacked(llms, tokenizer):
    """The sum over targets has the same gradient, packed or one by one; text alone gives the projector a zero."""
    import torch

    from sensorium.training.data.formats.objective import packed_next_token

    llm = llms["lora"]
    encoded = [encode(case, tokenizer, TOKENS) for case in CASES[:3]]
    torch.manual_seed(2)
    projector = torch.nn.Linear(6, tiny_llm.DIM)
    features = torch.randn(sum(len(e.media) for e in encoded), TOKENS, 6)
    learns = [*projector.parameters(), *(p for p in llm.parameters() if p.requires_grad)]

    def gradients(groups):
        total, at = None, 0
        for group in groups:
            count = sum(len(e.media) for e in group)
            mean, weight = packed_next_token(
                llm, projector(features[at : at + count]), pack([group], sum(e.length for e in group))
            )
            total = mean * weight if total is None else total + mean * weight
            at += count
        return torch.autograd.grad(total, learns)

    for packed, single in zip(gradients([encoded]), gradients([[e] for e in encoded])):
        torch.testing.assert_close(packed, single, rtol=2e-4, atol=2e-4)
    text = pack([[encoded[1]]], 100)
    loss, _ = packed_next_token(llms["bare"], projector(torch.zeros(0, TOKENS, 6)), text)
    loss.backward()
    assert projector.weight.grad is not None and not projector.weight.grad.any()


def test_a_wrong_number_of_tokens_is_a_sentence(llms, tokenizer):
    import torch

    from sensorium.training.data.formats.objective import packed_next_token

    rows = pack([[encode(CASES[0], tokenizer, TOKENS)]], 100)
    with pytest.raises(SensoriumError, match="gives 3 tokens for 1 media"):
        packed_next_token(llms["bare"], torch.zeros(1, 3, tiny_llm.DIM), rows)


def test_a_stage_learns_from_files(llms, tokenizer, tmp_path):
    """Three formats, the encoder, packed batches, the loop; a resumed run has the very losses of a whole one."""
    import torch

    from sensorium.encoders import create
    from sensorium.projectors.spec import tokens_for, torch_class
    from sensorium.training.data.formats.batches import PackedBatches
    from sensorium.training.data.formats.task import PackedTask
    from sensorium.training.loop import train_loop
    from sensorium.training.recipe import LearningRate, TrainRecipe

    np.save(tmp_path / "patches.npy", np.random.default_rng(0).normal(size=(48, 24)).astype(np.float32))
    encoder = create("linear-patches", tmp_path / "patches.npy", grid=4)
    text = [{"question": f"{c}?", "answer": f"{c}."} for c in COLOURS]
    data = [
        (open_set(format_files.messages_jsonl(tmp_path / "a")), 2.0),
        (open_set(format_files.webdataset(tmp_path / "b")), 1.0),
        (open_set(write_lines(pictures(tmp_path / "c") / "text.jsonl", text)), 1.0),
    ]
    count = tokens_for("mlp", {"pool": 2}, encoder.spec)

    def run(output, stop=0, resume=False, steps=5):
        torch.manual_seed(0)
        projector = torch_class("mlp")(24, tiny_llm.DIM, (4, 4), pool=2)
        stream = PackedBatches(
            data,
            lambda s: encode(s, tokenizer, count, limit=110),
            lambda media: encoder.encode([medium.load().pixels for medium in media]),
            rows=2, row_tokens=110, pool=8, window=16,
        )  # fmt: skip
        task = PackedTask(projector, llms["bare"], stream, LearningRate(projector=0.01))
        plan = TrainRecipe(
            steps=steps, rows=2, row_tokens=110, learning_rate=LearningRate(projector=0.01), warmup=1,
            checkpoint_every=3, log_every=1,
        )  # fmt: skip
        output.mkdir(exist_ok=True)
        stopping = iter([False] * stop + [True] * 9).__next__ if stop else lambda: False
        with contextlib.suppress(KeyboardInterrupt):
            train_loop(task, plan, output, resume=resume, stopping=stopping)
        return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]

    whole = run(tmp_path / "whole")
    assert len(whole) == 5 and min(whole[1:]) < whole[0]
    part = run(tmp_path / "part", stop=2)
    assert 0 < len(part) < 5 and part == whole[: len(part)]
    assert run(tmp_path / "part", resume=True) == whole
