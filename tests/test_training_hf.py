"""Backbones from Hugging Face directories: samples that share a row stay apart, and what cannot do so is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny_llm
from tiny_hf import DIM, VOCAB, WINDOW, write_hf

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from sensorium.backbones.gguf import GGUF  # noqa: E402
from sensorium.backbones.spec import spec_from_gguf  # noqa: E402
from sensorium.errors import SensoriumError, UsageError  # noqa: E402
from sensorium.prompt import IGNORE  # noqa: E402
from sensorium.training.backbone import load_llama, part_of  # noqa: E402
from sensorium.training.data.formats.encode import Encoded  # noqa: E402
from sensorium.training.data.formats.objective import packed_next_token  # noqa: E402
from sensorium.training.data.formats.packing import pack as pack_documents  # noqa: E402
from sensorium.training.hf_backbone import HFBackbone, load_hf  # noqa: E402
from sensorium.training.objectives.next_token import next_token  # noqa: E402
from sensorium.training.recipe import LoraRecipe  # noqa: E402
from sensorium.training.rows import Branch, Layout, pack  # noqa: E402

MEDIA = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of tiny models, each written once."""
    written = {}

    def directory(kind, **changes):
        key = f"{kind}{sorted(changes.items())}"
        if key not in written:
            written[key] = write_hf(tmp_path_factory.mktemp("hf") / kind, kind, **changes)
        return written[key]

    return directory


def branches(number=3, vocab=VOCAB):
    """Branches longer than the windows of the tiny models; the last five tokens of each are its answer."""
    random = np.random.default_rng(1)
    made = []
    for i in range(number):
        ids = tuple(int(n) for n in random.integers(0, vocab, WINDOW + 4 + i))
        made.append(Branch(ids, (IGNORE,) * (len(ids) - 5) + ids[-5:], focus=1.0 + i))
    return made


def shared_losses(llm, embeds, vocab=VOCAB):
    """The loss of three questions in one row, and the mean of each alone, weighted as in the row."""
    layout, asked = Layout((5, 6, 7), MEDIA), branches(vocab=vocab)
    together, weight = next_token(llm, embeds, pack(layout, [asked], 64))
    alone = [next_token(llm, embeds, pack(layout, [[branch]], 40)) for branch in asked]
    assert weight == sum(w for _, w in alone)
    return together, sum(loss * w for loss, w in alone) / weight


def picture(dim=DIM, seed=2):
    return torch.randn(1, MEDIA, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral", "Gemma2", "Gemma3Text", "GPTNeoX", "GPT2"])
def test_samples_of_one_row_have_the_losses_they_have_alone(saved, kind):
    llm = load_hf(saved(kind), dtype=torch.float32)
    with torch.no_grad():
        together, alone = shared_losses(llm, picture())
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
        documents = [
            Encoded(str(i), np.array(b.ids), np.array(b.labels), ((1, 1 + MEDIA),), (None,))
            for i, b in enumerate(branches())
        ]
        embeds = torch.cat([picture(seed=i) for i in range(3)])
        packed, weight = packed_next_token(llm, embeds, pack_documents([documents], 40))
        each = [packed_next_token(llm, embeds[i : i + 1], pack_documents([[d]], 14)) for i, d in enumerate(documents)]
    torch.testing.assert_close(packed, sum(loss * w for loss, w in each) / weight, rtol=1e-5, atol=1e-5)


def test_the_logits_are_those_of_the_models_own_forward(saved):
    """Without any packing, beyond the windows, through caps and scales of the head."""
    ids = torch.arange(20)[None] * 7 % VOCAB
    mask = torch.full((20, 20), -1e4).triu(1)[None, None]
    for kind in ("Gemma2", "Gemma3Text", "Mistral", "GPT2"):
        llm = load_hf(saved(kind), dtype=torch.float32)
        with torch.no_grad():
            ours = llm.logits(llm(llm.embed(ids), torch.arange(20)[None], mask)[0])
            theirs = llm.model(input_ids=ids).logits[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert theirs.std() > 0.3


def test_a_llama_has_the_loss_of_our_own(tmp_path):
    file = tiny_llm.write_gguf(tmp_path / "model.gguf")
    tiny_llm.reference(file).save_pretrained(str(tmp_path / "hf"))
    with GGUF(file) as gguf:
        ours = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32)
    theirs = load_hf(tmp_path / "hf", dtype=torch.float32)
    assert (theirs.shape.dim, theirs.shape.layers, theirs.shape.heads, theirs.shape.vocab) == (
        ours.shape.dim,
        ours.shape.layers,
        ours.shape.heads,
        ours.shape.vocab,
    )
    with torch.no_grad():
        for llm in (ours, theirs):
            llm.seen = shared_losses(llm, picture(tiny_llm.DIM), tiny_llm.VOCAB)[0]
    assert float(theirs.seen) == pytest.approx(float(ours.seen), rel=1e-5)


# LoRA -----------------------------------------------------------------------------------------------------------------


def stir(llm):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if part_of(name) == "lora":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return llm


def hidden(llm, seed=4):
    embeds = torch.randn(1, 12, llm.shape.dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return llm(embeds, torch.arange(12)[None], torch.full((12, 12), -1e4).triu(1)[None, None])


@pytest.mark.parametrize("kind", ["Qwen2", "GPTNeoX", "GPT2"])
def test_a_lora_starts_as_nothing_learns_and_is_switched_off(saved, kind):
    pytest.importorskip("peft")
    bare, llm = load_hf(saved(kind), dtype=torch.float32), load_hf(saved(kind), LoraRecipe(rank=2), torch.float32)
    assert torch.equal(hidden(llm), hidden(bare))
    learning = {name for name, p in llm.named_parameters() if p.requires_grad}
    assert learning and {part_of(name) for name in learning} == {"lora"}
    stir(llm)
    assert (hidden(llm) - hidden(bare)).abs().max() > 0.05
    with llm.without_lora():
        assert torch.equal(hidden(llm), hidden(bare))
        assert {name for name, p in llm.named_parameters() if p.requires_grad} == learning
    loss, _ = shared_losses(llm, picture())
    loss.backward()
    assert all((p.grad is not None) == (n in learning) for n, p in llm.named_parameters())


def test_the_saved_lora_is_the_one_that_the_runtime_merges(tmp_path):
    pytest.importorskip("peft")
    file = tiny_llm.write_gguf(tmp_path / "model.gguf", "qwen2")
    tiny_llm.reference(file).save_pretrained(str(tmp_path / "hf"))
    llm = stir(load_hf(tmp_path / "hf", LoraRecipe(rank=3, alpha=9), torch.float32))
    state = {name: tensor.numpy() for name, tensor in llm.lora_state().items()}
    assert "layers.1.gate_proj.lora_A" in state and len(state) == 14 * tiny_llm.LAYERS
    merged = tiny_llm.reference(file, lora=state)
    embeds = torch.randn(1, 12, llm.shape.dim, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        theirs = merged.model(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(hidden(llm), theirs, rtol=1e-4, atol=1e-4)


# Weights that learn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Qwen2", "Gemma3Text"])
def test_weights_that_learn_are_float32_and_run_in_bf16(saved, kind):
    exact = load_hf(saved(kind), dtype=torch.float32)
    llm = load_hf(saved(kind), dtype=torch.bfloat16, master=True)
    assert {p.dtype for p in llm.parameters()} == {torch.float32} and not any(p.requires_grad for p in llm.parameters())
    for parameter in llm.parameters():
        parameter.requires_grad_(True)
    loss, _ = shared_losses(llm, picture())
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in llm.parameters())
    assert hidden(llm).dtype == torch.bfloat16
    with torch.no_grad():
        assert float(loss) == pytest.approx(float(shared_losses(exact, picture())[0]), rel=0.05)


def test_what_is_saved_is_read_again(saved, tmp_path):
    llm = load_hf(saved("Gemma3Text"), dtype=torch.float32)
    with torch.no_grad():
        next(llm.parameters()).add_(0.1)
    llm.save(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors"}
    assert torch.equal(hidden(load_hf(tmp_path / "out", dtype=torch.float32)), hidden(llm))


# Refusals -------------------------------------------------------------------------------------------------------------


def refused(directory, kind=SensoriumError):
    with pytest.raises(kind) as caught:
        load_hf(directory, dtype=torch.float32)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400
    return text


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Bloom", "bloom cannot be trained with: it does not run with a mask of four dimensions"),
        ("Mamba", "mamba cannot be trained with: it has no layers of attention"),
        ("GPTNeo", "gpt_neo cannot be trained with: it has layers of the kind local"),
    ],
)
def test_an_architecture_that_mixes_samples_is_refused(saved, kind, reason):
    assert reason in refused(saved(kind))


@pytest.mark.parametrize("kind", ["Qwen2", "GPTNeoX", "Gemma3Text"])
def test_a_model_that_ignores_the_mask_or_the_positions_is_found_out(saved, monkeypatch, kind):
    masks, forward = HFBackbone._masks, HFBackbone.forward
    monkeypatch.setattr(HFBackbone, "_masks", lambda self, p, m: None)
    assert "change one another's logits" in refused(saved(kind))
    monkeypatch.setattr(HFBackbone, "_masks", masks)
    places = torch.arange(11)[None]
    monkeypatch.setattr(HFBackbone, "forward", lambda self, e, p, m: forward(self, e, places, m))
    assert "change one another's logits" in refused(saved(kind))


def test_directories_that_hold_no_model_are_one_sentence(saved, tmp_path):
    assert "no config.json" in refused(tmp_path, UsageError)
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((saved("Llama") / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config))
    assert "cannot be read" in refused(broken)  # no weights
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    assert "cannot be read" in refused(broken)  # weights in a pickle
    (broken / "model.safetensors").write_bytes(b"\0" * 40)
    assert "cannot be read" in refused(broken)
    (broken / "model.safetensors").write_bytes((saved("Llama") / "model.safetensors").read_bytes())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "lacks 9 of its weights, such as model.layers.2." in refused(broken)
    for spoilt in ({**config, "model_type": "nonesuch"}, {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, []):
        (broken / "config.json").write_text(json.dumps(spoilt))
        (broken / "evil.py").write_text("raise SystemExit('code of the directory was run')")
        assert "cannot be read" in refused(broken)
