"""The torch backbone of training: equal to transformers, its LoRA equal to the merged weights that inference runs."""

from __future__ import annotations

import numpy as np
import pytest

import tiny_llm

torch = pytest.importorskip("torch")

from sensorium.backbones.gguf import GGUF  # noqa: E402
from sensorium.backbones.lora import LoRA  # noqa: E402
from sensorium.backbones.spec import spec_from_gguf  # noqa: E402
from sensorium.training.backbone import digest_frozen, load_llama  # noqa: E402
from sensorium.training.export import save_tensors  # noqa: E402
from sensorium.training.recipe import LoraRecipe  # noqa: E402

LENGTH = 19


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_llm.write_gguf(tmp_path_factory.mktemp("llama") / "model.gguf")


def load(file, rank=0, alpha=8.0, dtype=torch.float32):
    with GGUF(file) as gguf:
        return load_llama(gguf, spec_from_gguf(gguf), LoraRecipe(rank=rank, alpha=alpha) if rank else None, dtype)


def causal(length=LENGTH):
    return torch.full((length, length), -1e4).triu(1)[None, None]


def run(llm, embeds, positions=None):
    positions = torch.arange(embeds.shape[1])[None].expand(len(embeds), -1) if positions is None else positions
    return llm(embeds, positions, causal(embeds.shape[1]))


def stir(llm, seed=3):
    """Give the LoRA values that matter: a fresh one has B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return llm


@pytest.mark.parametrize(
    ("arch", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False), ("gemma3", True)]
)
def test_hidden_states_and_logits_equal_transformers(tmp_path, arch, tied):
    """Gemma's windows are narrower than these texts, and one of its layers sees all of them."""
    assert tiny_llm.WINDOW < LENGTH
    file = tiny_llm.write_gguf(tmp_path / "model.gguf", arch, tied=tied)
    llm, reference = load(file), tiny_llm.reference(file)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, tiny_llm.VOCAB, (3, LENGTH)))
    with torch.no_grad():
        hidden = run(llm, llm.embed(ids))
        theirs = reference.model(input_ids=ids).last_hidden_state
        assert torch.equal(llm.embed(ids), reference.model.embed_tokens(ids))
        torch.testing.assert_close(hidden, theirs, rtol=1e-5, atol=3e-5)
        torch.testing.assert_close(
            llm.logits(hidden.flatten(0, 1)), reference.lm_head(theirs).flatten(0, 1), rtol=1e-5, atol=5e-5
        )
    assert theirs.abs().max() > 0.5  # the comparison is of something


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_embeddings_and_positions_may_be_anything(tmp_path, arch):
    """Given embeddings enter as they are: a scale of token embeddings belongs to the lookup."""
    file = tiny_llm.write_gguf(tmp_path / "model.gguf", arch)
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, LENGTH, tiny_llm.DIM, generator=generator)
    positions = torch.arange(LENGTH)[None].repeat(2, 1)
    positions[1] += 500
    with torch.no_grad():
        theirs = tiny_llm.reference(file).model(inputs_embeds=embeds, position_ids=positions).last_hidden_state
        torch.testing.assert_close(run(load(file), embeds, positions), theirs, rtol=1e-5, atol=3e-5)


def test_windows_go_by_position_not_by_place_in_the_row(tmp_path):
    """A branch behind others sees the shared part, however far off that stands in the row."""
    file = tiny_llm.write_gguf(tmp_path / "model.gguf", "gemma3")
    llm = load(file)
    ids = torch.from_numpy(np.random.default_rng(7).integers(0, tiny_llm.VOCAB, (1, 21)))
    shared, second = ids[:, :5], ids[:, 15:]
    positions = torch.tensor([[*range(5), *range(5, 15), *range(5, 11)]])
    branch = torch.tensor([0] * 5 + [1] * 10 + [2] * 6)
    allowed = ((branch[:, None] == branch) | (branch == 0)) & torch.ones(21, 21, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, 21, 21).masked_fill(~allowed, -1e4)
    with torch.no_grad():
        packed = llm(llm.embed(ids), positions, mask)[:, 15:]
        alone = run(llm, llm.embed(torch.cat((shared, second), 1)))[:, 5:]
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=3e-5)


def test_bf16_stays_near_fp32(file):
    embeds = torch.randn(1, LENGTH, tiny_llm.DIM, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact, rough = run(load(file), embeds), run(load(file, dtype=torch.bfloat16), embeds)
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).pow(2).mean() / exact.pow(2).mean()
    assert 0 < error < 5e-3


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3"])
def test_a_fresh_lora_changes_nothing_and_a_trained_one_equals_merged_weights(tmp_path, arch):
    file = tiny_llm.write_gguf(tmp_path / "model.gguf", arch)
    embeds = torch.randn(2, LENGTH, tiny_llm.DIM, generator=torch.Generator().manual_seed(4))
    bare, llm = load(file), load(file, rank=4, alpha=8.0)
    with torch.no_grad():
        assert torch.equal(run(llm, embeds), run(bare, embeds))
        changed = run(stir(llm), embeds)
        assert (changed - run(bare, embeds)).abs().max() > 0.1
        merged = tiny_llm.reference(file, lora={k: v.numpy() for k, v in llm.lora_state().items()})
        theirs = merged.model(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(changed, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_the_saved_lora_runs_in_the_runtime_engine(tmp_path, arch):
    """lora_state -> safetensors -> the graph writer's merge -> ONNX Runtime: the logits that training saw, of media
    that stand between tokens."""
    file = tiny_llm.write_gguf(tmp_path / "model.gguf", arch)
    from sensorium.backbones.engine import Engine, Segment
    from sensorium.backbones.onnx_graph import build

    llm = stir(load(file, rank=4, alpha=8.0))
    save_tensors(llm.lora_state(), tmp_path / "lora.safetensors", torch.float32)
    with GGUF(file) as gguf:
        LoRA(tmp_path / "lora.safetensors", spec_from_gguf(gguf))  # complete and of the right shapes
        build(gguf, tmp_path / "graph", quantization="fp32", lora=tmp_path / "lora.safetensors")
    ids, media = (5, 17, 250), torch.randn(1, LENGTH - 5, tiny_llm.DIM, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        text = llm.embed(torch.tensor([[*ids, 3, 4]]))
        ours = llm.logits(run(llm, torch.cat((text[:, :3], media, text[:, 3:]), 1))[0]).numpy()
    prompt = [Segment(ids=ids), Segment(embeds=media[0].numpy(), key="x"), Segment(ids=(3, 4))]
    theirs = Engine(tmp_path / "graph", threads=1).logits(prompt)
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


def test_only_the_lora_learns_and_the_digest_notices_any_other_change(file):
    llm = load(file, rank=2)
    learned = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert len(learned) == 7 * 2 * tiny_llm.LAYERS and all("lora_" in name for name in learned)
    before = digest_frozen(llm)
    stir(llm)
    assert digest_frozen(llm) == before
    with torch.no_grad():
        llm.blocks[3].input_norm.weight[5] += 1e-6
    assert digest_frozen(llm) != before


def test_a_tied_head_is_held_once(file):
    llm = load(file)
    assert llm.head is llm.embedding
    assert sum(name in ("head", "embedding") for name, _ in llm.named_parameters()) == 1
