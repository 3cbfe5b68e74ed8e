"""The torch engine against the ONNX engine and against transformers' own runs; compositions that use it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hf_folders
import tiny
import tiny_llm
from sensorium import loading
from sensorium.backbones.engine import Engine, SamplingParams, Segment, Stats
from sensorium.backbones.hf_folder import HFFolder
from sensorium.backbones.hf_spec import spec_of
from sensorium.composition import Composition
from sensorium.errors import SensoriumError, UsageError
from sensorium.model import Model
from test_engine import GREEDY, ids, picture, tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from sensorium.backbones.torch_engine import TorchEngine, TorchModel  # noqa: E402


def loaded(directory: Path, **options: Any) -> TorchModel:
    with HFFolder(directory) as folder:
        return TorchModel(directory, spec_of(folder), "cpu", **options)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """The same weights in both engines, bare and with a LoRA."""
    base = tmp_path_factory.mktemp("pair")
    lora = base / "lora.safetensors"
    tiny_llm.write_lora(lora)
    graph = tiny_llm.prepared(base / "bare", request.param)
    with_lora = tiny_llm.prepared(base / "lora", request.param, lora=lora)
    model = loaded(hf_folders.from_gguf(graph / "model.gguf", base / "hf"))
    return {
        "onnx": Engine(graph, threads=1),
        "torch": TorchEngine(model),
        "onnx lora": Engine(with_lora, threads=1),
        "torch lora": TorchEngine(model, lora),
    }


PROMPT = [Segment(ids=ids(30, 1)), Segment(embeds=picture(2), key="p"), Segment(ids=ids(5, 3))]


@pytest.mark.parametrize("lora", ["", " lora"])
def test_it_answers_as_the_onnx_engine(pair: dict[str, Engine], lora: str) -> None:
    onnx, ours = pair[f"onnx{lora}"], pair[f"torch{lora}"]
    wanted, found = (list(engine.generate(PROMPT, GREEDY)) for engine in (onnx, ours))
    assert tokens(found) == tokens(wanted)
    assert [step.finish for step in found] == [step.finish for step in wanted]
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in wanted], atol=1e-4)
    np.testing.assert_allclose(ours.next_logprobs(PROMPT), onnx.next_logprobs(PROMPT), atol=1e-4)
    np.testing.assert_allclose(ours.logits(PROMPT), onnx.logits(PROMPT), atol=1e-3)
    np.testing.assert_allclose(ours.hidden_states(PROMPT), onnx.hidden_states(PROMPT), atol=1e-4)
    np.testing.assert_allclose(ours.embed([0, 7, 299]), onnx.embed([0, 7, 299]), atol=1e-6)
    choices = [(1, 2, 3), (1, 5), (7,), (1, 2, 3, 4)]
    np.testing.assert_allclose(ours.score(PROMPT, choices), onnx.score(PROMPT, choices), atol=1e-3)


def test_a_lora_is_added_for_its_own_engine_alone(pair: dict[str, Engine]) -> None:
    before = pair["torch"].logits(PROMPT)
    changed = pair["torch lora"].logits(PROMPT)
    assert np.abs(changed - before).max() > 0.1
    np.testing.assert_array_equal(pair["torch"].logits(PROMPT), before)


def test_batches_of_unequal_lengths_and_prefixes_change_nothing(pair: dict[str, Engine]) -> None:
    engine = pair["torch"]
    prompts = [[Segment(ids=ids(n, 10 + n))] for n in (3, 290, 1, 17)]
    params = [SamplingParams(max_tokens=n) for n in (20, 5, 9, 20)]
    engine.clear_cache()
    alone = [tokens(list(engine.generate(prompt, each))) for prompt, each in zip(prompts, params)]
    together: list[list[int]] = [[] for _ in prompts]
    for steps in engine.generate_batch(prompts, params):
        for row, step in zip(together, steps):
            row += [] if step is None else [step.token]
    assert together == alone
    stats = Stats()
    longer = [Segment(ids=(*prompts[1][0].ids, 4, 2))]
    hit = list(engine.generate(longer, GREEDY, stats=stats))
    assert stats.cached_tokens == 290
    engine.clear_cache()
    assert tokens(list(engine.generate(longer, GREEDY))) == tokens(hit)


def test_cancelling_and_limits_are_the_engines(pair: dict[str, Engine]) -> None:
    cancel, seen = threading.Event(), []
    for step in pair["torch"].generate(PROMPT, GREEDY, cancel):
        seen.append(step)
        cancel.set()
    assert [step.finish for step in seen] == [None, "cancelled"]
    assert list(pair["torch"].generate(PROMPT, GREEDY, cancel)) == []
    with pytest.raises(UsageError, match="vocabulary has 0 to 299"):
        pair["torch"].next_logprobs([Segment(ids=(300,))])
    with pytest.raises(UsageError, match="context holds 1100"):
        pair["torch"].next_logprobs([Segment(ids=ids(1101, 1))])


FAMILIES = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "opt": ("OPT", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}),
    "mixtral": ("Mixtral", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "sliding_window": 5}),
    "gemma2": ("Gemma2", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "sliding_window": 5}),
}
_MORE = {"opt": {"word_embed_proj_dim": 32}, "gemma2": {"head_dim": 16}}
_SHARED = {"vocab_size": 300, "intermediate_size": 64, "num_key_value_heads": 1, "num_local_experts": 4}
_SHARED |= {"initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2}


def saved(directory: Path, name: str) -> Any:
    """A random model of a family, saved as transformers saves it, and the model."""
    family, sizes = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**{**_SHARED, **sizes, **_MORE.get(name, {})})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(directory)
    hf_folders.write_tokenizer(directory, [chr(0x4E00 + i) for i in range(300)], [], [])
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_no_graph_can_be_written_of(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, name)
    prompt = ids(20, 4)
    with torch.no_grad():
        wanted = model(torch.tensor([prompt]), use_cache=False).logits[0].numpy()
    engine = TorchEngine(loaded(tmp_path))
    np.testing.assert_allclose(engine.logits([Segment(ids=prompt)]), wanted, atol=1e-3)
    steps = list(engine.generate([Segment(ids=prompt)], SamplingParams(max_tokens=8)))
    whole = engine.logits([Segment(ids=(*prompt, *tokens(steps)))])
    assert whole[19:-1].argmax(-1).tolist() == tokens(steps)


def test_lower_precision_stays_close(tmp_path: Path) -> None:
    directory = hf_folders.from_gguf(tiny_llm.write_gguf(tmp_path / "model.gguf"), tmp_path / "hf")
    exact, rounded = (TorchEngine(loaded(directory, dtype=dtype)) for dtype in ("fp32", "bf16"))
    assert rounded.quantization == "bf16"
    a, b = exact.logits(PROMPT), rounded.logits(PROMPT)
    assert 1e-7 < np.square(a - b).mean() / a.var() < 2e-2


def test_weights_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    saved(tmp_path, "gpt2")
    state = load_file(tmp_path / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SensoriumError, match=r"lacks transformer\.h\.1\.mlp\.c_fc\.weight"):
        loaded(tmp_path)


def test_code_of_a_repository_never_runs(tmp_path: Path) -> None:
    saved(tmp_path, "gpt2")
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    hf_folders.edit(tmp_path / "config.json", auto_map=code)
    loaded(tmp_path)  # the library's own GPT-2
    hf_folders.edit(tmp_path / "config.json", model_type="evil")
    with pytest.raises(SensoriumError, match="transformers cannot load"):
        loaded(tmp_path)


# -- compositions


def composition(directory: Path, **backbone: str) -> Path:
    """The tiny composition over the directory of its LLM."""
    tiny.write(directory)
    with HFFolder(hf_folders.from_gguf(directory / "llm.gguf", directory / "llm")) as folder:
        new = folder.fingerprint
    manifest = directory / "manifest.json"
    hf_folders.edit(manifest, frozen={**Composition(directory).manifest.frozen, "backbone": new})  # type: ignore[union-attr]
    path = directory / "composition.yaml"
    more = "".join(f"\n  {key}: {value}" for key, value in backbone.items())
    path.write_text(path.read_text().replace("file:llm.gguf", "file:llm").replace("format: gguf", f"format: hf{more}"))
    return directory


@pytest.fixture
def red() -> np.ndarray:
    return np.full((16, 16, 3), (200, 30, 30), np.uint8)


def test_compositions_answer_alike_from_gguf_onnx_and_torch(tmp_path: Path, red: np.ndarray) -> None:
    plain = Model(Composition(tiny.write(tmp_path / "gguf")), 1, False).load()
    onnx = Model(Composition(composition(tmp_path / "onnx")), 1, False).load()
    torch_model = Model(Composition(composition(tmp_path / "torch", engine="torch", device="cpu")), 1, False).load()
    assert isinstance(torch_model.parts.media.get(), TorchEngine)
    assert not isinstance(onnx.parts.media.get(), TorchEngine)
    for options in ({"image": red}, {}):
        wanted = plain.ask("What is this <|im_end|>?", max_tokens=12, **options)
        for model in (onnx, torch_model):
            assert str(model.ask("What is this <|im_end|>?", max_tokens=12, **options)) == str(wanted)
    assert onnx.classify(red, ["a", "the"])[0][0] == torch_model.classify(red, ["a", "the"])[0][0]
    from sensorium.parts import describe_parts

    kinds = [describe_parts(model)["parts"][0] for model in (onnx, torch_model)]
    assert [part["kind"] for part in kinds] == [
        "hf llama, run in fp32",
        "hf llama, run by torch (device cpu, dtype auto)",
    ]
    assert kinds[0]["bytes"] == (tmp_path / "onnx" / "llm" / "model.safetensors").stat().st_size
    assert kinds[0]["fingerprint"] == kinds[1]["fingerprint"]


def test_what_is_wrong_is_said_when_a_composition_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(directory: Path) -> Model:
        return Model(Composition(directory), 1, False).load()

    directory = composition(tmp_path / "a")
    path = directory / "composition.yaml"
    text = path.read_text()
    hf_folders.edit(directory / "llm" / "config.json", rope_theta=2e4)
    with pytest.raises(SensoriumError, match="'backbone' has fingerprint"):
        load(directory)
    for change, says in {
        "format: hf": ("format: gguf", "does not exist or is no file"),
        "{source": ("{file: model.safetensors, source", "a directory has no file"),
        "template: chatml": ("template: chatml\n  engine: cuda", "engine is 'cuda'"),
        "quantization: fp32": ("quantization: fp32\n  device: tpu", "device is 'tpu'"),
        '"file:llm"': ('"hf:org/name@main"', "names a branch or a tag"),
    }.items():
        path.write_text(text.replace(change, says[0]))
        with pytest.raises(SensoriumError, match=says[1]):
            load(directory)
    path.write_text(text.replace("format: hf", "format: gguf\n  engine: torch"))
    with pytest.raises(UsageError, match=r"line 7: backbone\.engine is 'torch': it runs Hugging Face directories"):
        load(directory)
    path.write_text(text.replace('"file:llm"', f'"file:llm", files: {{config.json: {"ab" * 32}}}'))
    with pytest.raises(SensoriumError, match=r"config\.json has another sha256 than the pinned"):
        load(directory)
    hf_folders.edit(directory / "llm" / "config.json", rope_theta=1e4, hidden_act="gelu")
    path.write_text(text.replace("format: hf", "format: hf\n  engine: onnx"))
    with pytest.raises(SensoriumError, match=r"activation 'gelu'.*it needs `engine: torch`"):
        load(directory)
    path.write_text(text)
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "transformers" else object())
    with pytest.raises(SensoriumError, match=r"activation 'gelu'.*needs transformers; run .*\[torch\]") as error:
        load(directory)
    assert "\n" not in str(error.value)
