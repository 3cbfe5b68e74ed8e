"""A two-tower composition of a few kilobytes, random weights: `linear-patches`, a BERT of two layers, linear heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

GRID, PATCH, FEATURES, DIM, FFN, LAYERS, POSITIONS, SPACE = 4, 4, 24, 64, 96, 2, 160, 16
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] a an the of photo picture image red green blue apple dog cat tree and two is "
    "this there in view large small art chair car ##s ##e"
)


def write(directory: Path, *, heads: bool = True, seed: int = 0) -> Path:
    """Write the composition into `directory` and return it; without heads it is what a recipe starts from."""
    from sensorium.composition import file_sha256
    from sensorium.encoders import create, create_text

    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    np.save(directory / "patches.npy", random.normal(size=(PATCH * PATCH * 3, FEATURES)).astype(np.float32))
    write_bert(directory / "model.safetensors", random)
    write_tokenizer(directory / "tokenizer.json")
    text = f"""
name: tiny-clip
kind: clip
licence: Apache-2.0
encoders:
  image:
    kind: linear-patches
    part: {{source: "file:patches.npy", licence: Apache-2.0}}
    options: {{grid: {GRID}}}
  text:
    kind: minilm
    part: {{source: "file:model.safetensors", licence: Apache-2.0}}
    tokenizer: tokenizer.json
"""
    if heads:
        text += "heads:\n" + "".join(
            f"  {side}: {{weights: {side}.safetensors, onnx: {side}.onnx}}\n" for side in ("image", "text")
        )
        text += "temperature: 0.1\n"
        write_head(directory / "image.onnx", random, GRID * GRID, FEATURES)
        write_head(directory / "text.onnx", random, 1, DIM)
        frozen = {
            "encoders.image": create("linear-patches", directory / "patches.npy", grid=GRID).spec.fingerprint,
            "encoders.text": create_text("minilm", directory / "model.safetensors").spec.fingerprint,
        }
        files = {path.name: file_sha256(path) for side in ("image", "text") for path in directory.glob(f"{side}.*")}
        (directory / "manifest.json").write_text(json.dumps({"schema": 1, "frozen": frozen, "files": files}))
    (directory / "composition.yaml").write_text(text)
    return directory


def bert_weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights under the names of `bert_graph.weight_names`."""
    from sensorium.encoders.bert_graph import Shape, weight_names

    shape = Shape(len(WORDS.split()), POSITIONS, DIM, LAYERS, FFN)
    made = {}
    for name, size in weight_names(shape).items():
        value = random.normal(0, 0.25, size)
        made[name] = (1 + value if name.endswith("LayerNorm.weight") else value).astype(np.float32)
    return made


def write_bert(path: Path, random: np.random.Generator) -> None:
    """The weights as safetensors, with one tensor more that no graph needs."""
    from safetensors.numpy import save_file

    save_file({**bert_weights(random), "pooler.dense.bias": np.zeros(DIM, np.float32)}, str(path))


def write_tokenizer(path: Path) -> None:
    """A word-piece tokenizer over `WORDS`, with padding and truncation set as published files have them."""
    vocabulary = {word: at for at, word in enumerate(WORDS.split())}
    marks = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    marks.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    ids = {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    added = [
        {"id": at, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for word, at in vocabulary.items() if word.startswith("[")
    ]  # fmt: skip
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    value = {
        "version": "1.0",
        "truncation": {"max_length": 128, "strategy": "LongestFirst", "stride": 0},
        "padding": {**padding, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": marks, "pair": marks, "special_tokens": ids},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }  # fmt: skip
    path.write_text(json.dumps(value))


def write_head(path: Path, random: np.random.Generator, cells: int, dim: int, outputs: int = SPACE) -> None:
    """Mean over the cells, then a matrix."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    weight = random.normal(0, 0.3, (dim, outputs)).astype(np.float32)
    save_file({"weight": weight}, str(path.with_suffix(".safetensors")))
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["features", "axes"], ["mean"], keepdims=1),
            helper.make_node("MatMul", ["mean", "weight"], ["embeds"]),
        ],
        "head",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", cells, dim])],
        [helper.make_tensor_value_info("embeds", TensorProto.FLOAT, ["batch", 1, outputs])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes"), numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


COLOURS = {"red": (210, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 210), "white": (250, 250, 250)}


def pictures(folder: Path) -> Path:
    """Four plain pictures, one of them in a folder of its own."""
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Pillow.new("RGB", (24, 20), colour).save(folder / ("deep" if name == "blue" else "") / f"{name}.png")
    return folder
