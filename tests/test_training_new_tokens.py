"""New tokens from a recipe to an answer: the backbone stays frozen, the runtime says what training learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from safetensors.numpy import load_file, save_file

import tiny
import tiny_training
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.spec import spec_from_gguf
from sensorium.cli import run
from sensorium.composition import file_sha256
from sensorium.media import load_image
from sensorium.messages import Message
from sensorium.model import Model, load

torch = pytest.importorskip("torch")

from sensorium.training import checkpoint  # noqa: E402
from sensorium.training.backbone import load_llama  # noqa: E402

NAMES = ["<red>", "<blue>"]
QUESTION = "Which, <red> or <blue>?"
FIRST = len(tiny.vocabulary())


def colour(name: str) -> np.ndarray:
    return np.full((30, 40, 3), (200, 30, 30) if name == "<red>" else (30, 30, 200), np.uint8)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A run that trained rows of two tokens and a projector on a frozen backbone, to name colours."""
    directory = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_HOME", str(directory / "home"))
        patch.setenv("SENSORIUM_OFFLINE", "1")
        samples = []
        for i, name in enumerate(NAMES * 4):
            Pillow.fromarray(colour(name)).save(directory / f"{i}.png")
            asked = [{"type": "image", "image": f"{i}.png"}, {"type": "text", "text": QUESTION}]
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": name}]
            samples.append(json.dumps({"id": f"s{i}", "messages": turns}) + "\n")
        (directory / "samples.jsonl").write_text("".join(samples))
        tiny.write(directory / "base", lora=False, projector=False)
        plan = tiny_training.recipe(tiny.write(directory / "model"), Path("unused"), directory / "out")
        plan["lora"], plan["tokens"] = None, {"names": NAMES}
        plan["data"] = {"sets": [{"path": str(directory / "samples.jsonl")}]}
        plan["stages"] = [{"name": "all", "trains": ["projector", "tokens"]}]
        plan["train"] |= {"learning_rate": {"projector": 0.02, "tokens": 0.05}, "steps": 32, "log_every": 10}
        plan["train"]["checkpoint_every"] = 32
        path = tiny_training.write_recipe(directory / "recipe.yaml", {k: v for k, v in plan.items() if v is not None})
        assert run(["train", str(path)]) == 0
        yield directory


def opened(directory: Path) -> Model:
    return load(directory, threads=1, progress=False)


@pytest.fixture(scope="module")
def model(run_directory):
    return opened(run_directory / "out" / "composition")


def conversation() -> list[Message]:
    """A picture, an answer that is a new token, and names that the user types."""
    first = Message("user", [load_image(colour("<red>")), QUESTION])
    return [first, Message("assistant", "<red>"), Message("user", "Not <blue>?"), Message("assistant", "<red><blue>")]


def torch_logits(run_directory: Path, model: Model) -> np.ndarray:
    """What the torch model that was trained gives after each position of that conversation, with the rows of its
    checkpoint."""
    with GGUF(run_directory / "model" / "llm.gguf") as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32)
    llm.add_tokens(NAMES)
    rows = checkpoint.trained(run_directory / "out" / "all")["tokens.new_tokens.embeddings"]
    with torch.no_grad():
        llm.new_tokens.embeddings.copy_(rows)
        parts = [
            llm.embed(torch.tensor([segment.ids])) if segment.embeds is None else torch.tensor(segment.embeds)[None]
            for segment in model.prepare(conversation()).segments
        ]
        embeds = torch.cat(parts, dim=1)
        length = embeds.shape[1]
        mask = torch.full((length, length), -1e4).triu(1)[None, None]
        return llm.logits(llm(embeds, torch.arange(length)[None], mask)[0]).numpy()


def test_a_trained_token_is_answered_by_name(model):
    for name in NAMES:
        answer = model.ask(QUESTION, image=colour(name), max_tokens=4, logprobs=2)
        assert answer == name and answer.finish_reason == "stop"
        assert (answer.logprobs[0].token, answer.logprobs[0].id) == (name, FIRST + NAMES.index(name))
        assert "".join(model.ask(QUESTION, image=colour(name), max_tokens=4, stream=True)) == name
        scores = model.score([Message("user", [load_image(colour(name)), QUESTION])], NAMES)
        assert scores.tokens.tolist() == [2, 2]  # the name, and the end of the answer
        assert NAMES[int(scores.logprobs.argmax())] == name and scores.logprobs.max() > np.log(0.5)


def test_names_are_tokens_in_answers_and_characters_in_questions(model):
    rendered = model.prepare(conversation()).rendered
    said = [[i for i in span.ids if i >= FIRST] for span in rendered.spans if span.target and span.kind == "text"]
    assert said == [[FIRST], [FIRST, FIRST + 1]]
    assert not any(i >= FIRST for span in rendered.spans if not span.target for i in span.ids)


def test_logits_are_those_of_training_and_of_the_bare_backbone_below(run_directory, model):
    prepared = model.prepare(conversation())
    found, wanted = prepared.engine.logits(prepared.segments), torch_logits(run_directory, model)
    assert found.shape == wanted.shape == (prepared.rendered.length, FIRST + 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    typed = model.prepare([Message("user", [conversation()[0].media[0], QUESTION])])
    bare = model.parts.bare.get().logits(typed.segments)
    np.testing.assert_array_equal(typed.engine.logits(typed.segments)[:, :FIRST], bare)


def test_swapped_rows_are_noticed(run_directory, model, tmp_path):
    """The planted fault: what the tests above compare does depend on which row is whose."""
    other = shutil.copytree(run_directory / "out" / "composition", tmp_path / "swapped")
    rows = load_file(other / "tokens.safetensors")["embeddings"]
    save_file({"embeddings": np.ascontiguousarray(rows[::-1])}, other / "tokens.safetensors")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["tokens.safetensors"] = file_sha256(other / "tokens.safetensors")
    (other / "manifest.json").write_text(json.dumps(manifest))
    swapped = opened(other)
    assert swapped.ask(QUESTION, image=colour("<red>"), max_tokens=1) == "<blue>"
    prepared = swapped.prepare(conversation())
    found = prepared.engine.logits(prepared.segments)
    assert np.abs(found - torch_logits(run_directory, model)).max() > 0.5


def test_text_alone_stays_the_bare_backbone(run_directory, model):
    bare = opened(run_directory / "base")
    turns = [Message("user", QUESTION), Message("assistant", "<red>"), Message("user", "And now?")]
    ours, theirs = (m.chat(turns, max_tokens=12, logprobs=3) for m in (model, bare))
    assert (ours, ours.logprobs) == (theirs, theirs.logprobs)
