"""A whole composition of a few hundred kilobytes with random weights, written in milliseconds: nothing is downloaded.

The language model is a real llama-architecture GGUF (2 layers, width 64, byte-level BPE with ChatML markers), the
encoder is `linear-patches`, the projector a one-layer `mlp` in ONNX, the LoRA touches every linear layer. With
`speech` it hears, too: `linear-frames` and a one-layer `stack`. Only the weights mean nothing.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

DIM, LAYERS, HEADS, KV_HEADS, FFN, CONTEXT = 64, 2, 4, 2, 128, 512
GRID, PATCH, FEATURES, POOL, RANK = 4, 4, 24, 2, 4
TOKENS = (GRID // POOL) ** 2
FRAME, SOUNDS, STACK = 320, 12, 8
MERGES = ["t h", "th e", "Ġ a", "i n", "Ġ the", "a n"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = "{% for message in messages %}{{'<|im_start|>' + message['role']}}{% endfor %}"
STRING, ARRAY, UINT32, INT32, FLOAT32, BOOL = 8, 9, 4, 5, 6, 7


def write(directory: Path, *, lora: bool = True, projector: bool = True, speech: bool = False, seed: int = 0) -> Path:
    """Write a composition into `directory` and return the directory."""
    from sensorium.backbones.gguf import GGUF
    from sensorium.composition import file_sha256
    from sensorium.encoders import create, create_audio

    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    write_gguf(directory / "llm.gguf", random)
    np.save(directory / "patches.npy", random.normal(size=(PATCH * PATCH * 3, FEATURES)).astype(np.float32))
    write_projector(directory / "image.onnx", random)
    text = """
name: tiny
licence: Apache-2.0
backbone:
  part: {source: "file:llm.gguf", licence: Apache-2.0}
  format: gguf
  quantization: fp32
  template: chatml
"""
    if projector:
        text += f"""
encoders:
  image:
    kind: linear-patches
    part: {{source: "file:patches.npy", licence: Apache-2.0}}
    options: {{grid: {GRID}}}
projectors:
  image: {{kind: mlp, encoder: image, weights: image.safetensors, onnx: image.onnx, options: {{pool: {POOL}}}}}
"""
        if speech:
            text = with_speech(directory, text, np.random.default_rng(seed + 1))
    if lora:
        text += "lora: {weights: lora.safetensors, active: media}\n"
        write_lora(directory / "lora.safetensors", random)
    (directory / "composition.yaml").write_text(text)
    with GGUF(directory / "llm.gguf") as gguf:
        frozen = {"backbone": gguf.fingerprint}
    frozen["encoders.image"] = create("linear-patches", directory / "patches.npy", grid=GRID).spec.fingerprint
    if speech:
        frozen["encoders.speech"] = create_audio("linear-frames", directory / "frames.npy").spec.fingerprint
    names = ("image.onnx", "image.safetensors", "lora.safetensors", "listen.onnx", "listen.safetensors")
    trained = [name for name in names if (directory / name).is_file()]
    files = {name: file_sha256(directory / name) for name in trained}
    manifest = {"schema": 1, "recipe": "tests/tiny.py", "frozen": frozen, "files": files, "metrics": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def with_speech(directory: Path, text: str, random: np.random.Generator) -> str:
    """Write the parts that hear, and return the composition's text with them."""
    np.save(directory / "frames.npy", random.normal(size=(FRAME, SOUNDS)).astype(np.float32))
    write_stack(directory / "listen.onnx", random)
    encoder = 'speech: {kind: linear-frames, part: {source: "file:frames.npy", licence: Apache-2.0}}'
    files = "weights: listen.safetensors, onnx: listen.onnx"
    projector = f"speech: {{kind: stack, encoder: speech, {files}, options: {{stack: {STACK}}}}}"
    return text.replace("projectors:\n", f"  {encoder}\nprojectors:\n") + f"  {projector}\n"


def write_stack(
    path: Path, random: np.random.Generator, features: int = SOUNDS, dim: int = DIM, stack: int = STACK
) -> None:
    """A `stack` projector: zeros behind the end up to whole stacks, which are laid side by side, then one layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    weight = random.normal(0, 0.3, (features * stack, dim)).astype(np.float32)
    save_file({"weight": weight}, str(path.with_suffix(".safetensors")))
    integers = {"zeros": [0, 0, 0, 0], "zero": [0], "size": [stack], "shape": [1, -1, features * stack]}
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["features"], ["frames"], start=1, end=2),
            helper.make_node("Neg", ["frames"], ["negative"]),
            helper.make_node("Mod", ["negative", "size"], ["missing"]),
            helper.make_node("Concat", ["zeros", "missing", "zero"], ["pads"], axis=0),
            helper.make_node("Pad", ["features", "pads"], ["padded"]),
            helper.make_node("Reshape", ["padded", "shape"], ["stacked"]),
            helper.make_node("MatMul", ["stacked", "weight"], ["embeds"]),
        ],
        "projector",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, "frames", features])],
        [helper.make_tensor_value_info("embeds", TensorProto.FLOAT, [1, "positions", dim])],
        [numpy_helper.from_array(weight, "weight")]
        + [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in integers.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def vocabulary() -> list[str]:
    """256 byte characters, the merged tokens, the special tokens, in this order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = sorted(set(range(256)) - set(printable))
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
    return characters + [merge.replace(" ", "") for merge in MERGES] + SPECIALS


def write_gguf(path: Path, random: np.random.Generator, dim: int = DIM, layers: int = LAYERS) -> None:
    """A llama GGUF with random float32 weights."""
    tokens = vocabulary()
    head_dim = DIM // HEADS
    end = tokens.index("<|im_end|>")
    metadata: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "general.alignment": (UINT32, 32),
        "llama.block_count": (UINT32, layers),
        "llama.context_length": (UINT32, CONTEXT),
        "llama.embedding_length": (UINT32, dim),
        "llama.feed_forward_length": (UINT32, FFN),
        "llama.attention.head_count": (UINT32, HEADS),
        "llama.attention.head_count_kv": (UINT32, KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
        "llama.attention.key_length": (UINT32, head_dim),
        "llama.attention.value_length": (UINT32, head_dim),
        "llama.rope.dimension_count": (UINT32, head_dim),
        "llama.rope.freq_base": (FLOAT32, 10000.0),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "smollm"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, [1] * (len(tokens) - len(SPECIALS)) + [3] * len(SPECIALS))),
        "tokenizer.ggml.merges": (ARRAY, (STRING, MERGES)),
        "tokenizer.ggml.bos_token_id": (UINT32, end - 1),
        "tokenizer.ggml.eos_token_id": (UINT32, end),
        "tokenizer.chat_template": (STRING, CHAT_TEMPLATE),
    }
    queries, keys = HEADS * head_dim, KV_HEADS * head_dim
    shapes = {"token_embd.weight": (len(tokens), dim), "output_norm.weight": (dim,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_q.weight": (queries, dim),
            f"blk.{i}.attn_k.weight": (keys, dim),
            f"blk.{i}.attn_v.weight": (keys, dim),
            f"blk.{i}.attn_output.weight": (dim, queries),
            f"blk.{i}.ffn_gate.weight": (FFN, dim),
            f"blk.{i}.ffn_up.weight": (FFN, dim),
            f"blk.{i}.ffn_down.weight": (dim, FFN),
            f"blk.{i}.attn_norm.weight": (dim,),
            f"blk.{i}.ffn_norm.weight": (dim,),
        }
    tensors = {
        name: np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        header += _text(key) + struct.pack("<I", kind) + _value(kind, value)
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        header += _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)
        offset += -(-tensor.nbytes // 32) * 32
    body = b"".join(t.tobytes() + b"\0" * (-t.nbytes % 32) for t in tensors.values())
    path.write_bytes(header + b"\0" * (-len(header) % 32) + body)


def write_projector(
    path: Path, random: np.random.Generator, cells: int = GRID * GRID, features: int = FEATURES, dim: int = DIM
) -> None:
    """An `mlp` projector: 2x2 average pooling of the grid, then one linear layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    side = round(cells**0.5)
    pool = np.zeros((cells // POOL**2, cells), np.float32)
    for y in range(side):
        for x in range(side):
            pool[(y // POOL) * (side // POOL) + x // POOL, y * side + x] = 1 / POOL**2
    weight = random.normal(0, 0.3, (features, dim)).astype(np.float32)
    save_file({"weight": weight}, str(path.with_suffix(".safetensors")))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["pool", "features"], ["pooled"]),
            helper.make_node("MatMul", ["pooled", "weight"], ["embeds"]),
        ],
        "projector",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", cells, features])],
        [helper.make_tensor_value_info("embeds", TensorProto.FLOAT, ["batch", cells // POOL**2, dim])],
        [numpy_helper.from_array(pool, "pool"), numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def write_lora(path: Path, random: np.random.Generator, dim: int = DIM, layers: int = LAYERS) -> None:
    """A LoRA on every linear layer, strong enough to change answers."""
    from safetensors.numpy import save_file

    keys = KV_HEADS * (DIM // HEADS)
    sizes = {
        "q_proj": (dim, DIM),
        "k_proj": (dim, keys),
        "v_proj": (dim, keys),
        "o_proj": (DIM, dim),
        "gate_proj": (dim, FFN),
        "up_proj": (dim, FFN),
        "down_proj": (FFN, dim),
    }
    tensors = {}
    for i in range(layers):
        for name, (inputs, outputs) in sizes.items():
            tensors[f"layers.{i}.{name}.lora_A"] = random.normal(0, 0.3, (RANK, inputs)).astype(np.float32)
            tensors[f"layers.{i}.{name}.lora_B"] = random.normal(0, 0.3, (outputs, RANK)).astype(np.float32)
    save_file(tensors, str(path))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_value(inner, item) for item in items)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)
