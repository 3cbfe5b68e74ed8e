"""Trained tensors -> what inference reads: safetensors, an ONNX twin that points into it, and the manifest.

The twin holds only the graph: each weight is an external tensor at its offset inside the safetensors file, so nothing
is stored twice and the two can never disagree.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def save_tensors(state: dict[str, torch.Tensor], path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write tensors as safetensors in ``dtype``, by way of a temporary file."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".tmp")
    temporary.touch()
    usual = temporary.stat().st_mode
    save_file({name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}, str(temporary))
    temporary.chmod(usual)  # safetensors keeps files to their owner
    temporary.replace(path)


def export_projector(projector: nn.Module, cells: int, dim: int, directory: Path, name: str = "image") -> None:
    """Write ``name.safetensors`` (float16) and ``name.onnx`` (features [B, cells, dim] -> embeds, float32)."""
    free = {"features": {0: "batch"}, "embeds": {0: "batch"}}
    export_twin(projector, {"features": torch.zeros(2, cells, dim)}, ["embeds"], free, directory, name)


def export_twin(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    free: Mapping[str, Mapping[int, str]],
    directory: Path,
    name: str,
) -> None:
    """Write ``name.safetensors`` (float16) and the graph that points into it, ``name.onnx``.

    Args:
        module: what is run, with `inputs` in their order.
        inputs: examples, by name.
        outputs: names of what it gives.
        free: axes of inputs and outputs that may have any size, by name; all others keep the size that they have now.
        directory: where the files are written.
        name: of the files.
    """
    import onnx

    weights = directory / f"{name}.safetensors"
    save_tensors(dict(module.state_dict()), weights)
    module = copy.deepcopy(module).to("cpu").float().eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated, its successor needs one package more
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a buffer, its stub does not say so
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={side: dict(axes) for side, axes in free.items()},
            opset_version=18,
            dynamo=False,
            do_constant_folding=False,
        )
        with torch.no_grad():
            given = module(*inputs.values())
    model = onnx.load_model_from_string(buffer.getvalue())
    share_weights(model, weights)
    for output, value in zip(model.graph.output, [given] if isinstance(given, torch.Tensor) else given):
        for axis, size in enumerate(output.type.tensor_type.shape.dim):  # the exporter follows few of them
            if axis not in free.get(output.name, {}):
                size.dim_value = value.shape[axis]
    (directory / f"{name}.onnx").write_bytes(model.SerializeToString())


def share_weights(model: Any, weights: Path) -> None:
    """Let the graph of `model` read its weights from the safetensors file beside it, instead of holding copies.

    Raises:
        ValueError: the exporter changed a weight, or left one out (a bug).
    """
    from onnx import TensorProto, external_data_helper, helper

    offsets = tensor_offsets(weights)
    kept, casts = [], []
    for tensor in model.graph.initializer:
        if tensor.name not in offsets:
            kept.append(tensor)
            continue
        start, length, shape = offsets[tensor.name]
        if tuple(tensor.dims) != shape:
            raise ValueError(f"the exporter reshaped {tensor.name}: {tuple(tensor.dims)} is not {shape}")
        half = TensorProto(name=f"{tensor.name}.f16", data_type=TensorProto.FLOAT16, dims=shape)
        half.raw_data = np.zeros(0, np.float16).tobytes()
        external_data_helper.set_external_data(half, weights.name, start, length)
        half.ClearField("raw_data")
        kept.append(half)
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    missing = set(offsets) - {t.name.removesuffix(".f16") for t in kept}
    if missing:
        raise ValueError(f"the exported graph does not use {', '.join(sorted(missing))}")
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


def tensor_offsets(path: Path) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """Tensor name -> (offset in the file, bytes, shape) of a safetensors file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    table = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            table[name] = (8 + size + start, end - start, tuple(entry["shape"]))
    return table
