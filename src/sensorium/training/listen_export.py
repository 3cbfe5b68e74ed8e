"""A projector along time -> safetensors and the ONNX twin that points into it (see `training.export`).

Input `features` float32 [1, frames, dim], any number of frames; output `embeds` float32 [1, positions, backbone dim].
"""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from sensorium.training.export import save_tensors, share_weights


def export_listen(projector: Any, dim: int, directory: Path, name: str = "listen") -> None:
    """Write ``name.safetensors`` (float16) and ``name.onnx``; ``dim`` is the width of a feature."""
    import onnx

    weights = directory / f"{name}.safetensors"
    save_tensors(dict(projector.state_dict()), weights)
    projector = copy.deepcopy(projector).to("cpu").float().eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            projector,
            (torch.zeros(1, projector.stack + 3, dim),),
            buffer,  # type: ignore[arg-type]
            input_names=["features"],
            output_names=["embeds"],
            dynamic_axes={"features": {1: "frames"}, "embeds": {1: "positions"}},
            opset_version=18,
            dynamo=False,
            do_constant_folding=False,
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    share_weights(model, weights)
    with torch.no_grad():
        width = projector(torch.zeros(1, 1, dim)).shape[2]
    sizes = model.graph.output[0].type.tensor_type.shape.dim
    sizes[0].dim_value, sizes[2].dim_value = 1, int(width)
    (directory / f"{name}.onnx").write_bytes(model.SerializeToString())
