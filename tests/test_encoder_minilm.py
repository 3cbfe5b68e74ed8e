"""The sentence encoder: parity with a plain computation, batches, long and odd texts, wrong files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny_clip
from sensorium import encoders
from sensorium.encoders.minilm import LONGEST
from sensorium.errors import SensoriumError, UsageError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_clip.write(tmp_path_factory.mktemp("bert"), heads=False)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "bert-home"))


@pytest.fixture
def encoder(files):
    return encoders.create_text("minilm", files / "model.safetensors", threads=1)


def layer_norm(x, weights, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def reference(ids, weights):
    """One text through a BERT, straight from the paper, in float64: hidden states [tokens, dim]."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    embedded = weights["embeddings.word_embeddings.weight"][ids]
    embedded = embedded + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = layer_norm(embedded + weights["embeddings.token_type_embeddings.weight"][0], weights, "embeddings.LayerNorm")
    for i in range(tiny_clip.LAYERS):
        at = f"encoder.layer.{i}."
        heads = []
        q, k, v = (linear(x, weights, f"{at}attention.self.{name}") for name in ("query", "key", "value"))
        for start in range(0, tiny_clip.DIM, 32):
            part = slice(start, start + 32)
            scores = q[:, part] @ k[:, part].T / math.sqrt(32)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(shares / shares.sum(-1, keepdims=True) @ v[:, part])
        x = layer_norm(linear(np.concatenate(heads, 1), weights, f"{at}attention.output.dense") + x, weights,
                       f"{at}attention.output.LayerNorm")  # fmt: skip
        y = linear(x, weights, f"{at}intermediate.dense")
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = layer_norm(linear(y, weights, f"{at}output.dense") + x, weights, f"{at}output.LayerNorm")
    return x


TEXTS = ["a red apple", "two dogs and a cat in view", "", "Äpfel?", "a " * 400]


def ids_of(files, text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer.encode(text).ids


def test_the_vectors_are_those_of_a_plain_computation(encoder, files):
    weights = load_file(files / "model.safetensors")
    pooled, tokens = encoder.encode_text(TEXTS), encoder.encode_tokens(TEXTS)
    for text, vector, each in zip(TEXTS, pooled, tokens):
        hidden = reference(ids_of(files, text), weights)
        np.testing.assert_allclose(each, hidden, atol=2e-5)
        np.testing.assert_allclose(vector, hidden.mean(0), atol=2e-5)
    assert len(tokens[-1]) == LONGEST and len(tokens[2]) == 2


def test_a_vector_does_not_depend_on_the_texts_beside_it(encoder):
    many = [TEXTS[i % 4] for i in range(70)]
    together = encoder.encode_text(many)
    for i in (0, 1, 2, 3, 69):
        np.testing.assert_allclose(together[i], encoder.encode_text([many[i]])[0], atol=2e-6)
    assert encoder.encode_text([]).shape == (0, tiny_clip.DIM)


def test_the_seams(encoder):
    assert isinstance(encoder, encoders.TextEncoder)
    assert (encoder.spec.dim, encoder.spec.layout) == (tiny_clip.DIM, encoders.Vector())
    assert isinstance(encoder.sequence.layout, encoders.Sequence)


def test_the_fingerprint_follows_weights_and_tokenizer_and_not_the_path(encoder, files, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (copy / name).write_bytes((files / name).read_bytes())
    assert encoders.create_text("minilm", copy / "model.safetensors").spec == encoder.spec
    words = json.loads((copy / "tokenizer.json").read_text())
    words["normalizer"]["lowercase"] = False
    (copy / "tokenizer.json").write_text(json.dumps(words))
    assert encoders.create_text("minilm", copy / "model.safetensors").spec.fingerprint != encoder.spec.fingerprint


def test_odd_texts(encoder):
    assert np.isfinite(encoder.encode_text(["\ud800", "\0", "🍎" * 900, "[SEP] [CLS]"])).all()
    with pytest.raises(UsageError, match="give it texts"):
        encoder.encode_text([1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("encoder.layer.1.output.LayerNorm.bias"), "missing"),
        (lambda w: w.update({"encoder.layer.0.output.dense.bias": np.zeros(3, np.float32)}), "not float"),
        (lambda w: w["encoder.layer.0.output.dense.bias"].fill(np.nan), "not finite"),
        (lambda w: w.pop("embeddings.word_embeddings.weight"), "no.* BERT|not the weights"),
        (lambda w: w.update({"embeddings.position_embeddings.weight": np.zeros((9, 64), np.float32)}), "does not fit"),
    ],
)
def test_wrong_weights(files, tmp_path, change, words):
    weights = {name: value.copy() for name, value in load_file(files / "model.safetensors").items()}
    change(weights)
    save_file(weights, str(tmp_path / "model.safetensors"))
    with pytest.raises(SensoriumError, match=words) as error:
        encoders.create_text("minilm", tmp_path / "model.safetensors", tokenizer=files / "tokenizer.json")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "WordPiece"}}', b"[" * 5000])
def test_wrong_tokenizers_and_weights_files(files, tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    for arguments in ((files / "model.safetensors", tmp_path / "x"), (tmp_path / "x", files / "tokenizer.json")):
        with pytest.raises(SensoriumError) as error:
            encoders.create_text("minilm", arguments[0], tokenizer=arguments[1])
        assert "\n" not in str(error.value)


def test_unknown_kinds_and_options(files):
    with pytest.raises(UsageError, match="unknown"):
        encoders.create_text("bert", files / "model.safetensors")
    with pytest.raises(UsageError, match="options"):
        encoders.create_text("minilm", files / "model.safetensors", resolution=3)
    with pytest.raises(SensoriumError, match="cannot be read"):
        encoders.create_text("minilm", files / "none.safetensors", tokenizer=files / "tokenizer.json")
