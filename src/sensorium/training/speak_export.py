"""An output projector -> safetensors and the ONNX twin that points into it (see `training.export`).

Inputs are `states`, `embeds` and `before` float32 [1, N, dim], `letters` int64 [1, N, letters], `past` float32
[depth, 2, 1, heads, P, head_dim] and `start` int64 [1]; outputs `logits` float32 [1, N, upsample, units + 1] and
`present`, which is the next `past`.
"""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from sensorium.training.export import save_tensors, share_weights


def export_output(projector: Any, directory: Path, name: str = "speech") -> None:
    """Write ``name.safetensors`` (float16) and ``name.onnx``."""
    import onnx

    weights = directory / f"{name}.safetensors"
    save_tensors(dict(projector.state_dict()), weights)
    projector = copy.deepcopy(projector).to("cpu").eval()
    some = torch.zeros(1, 3, projector.dim)
    letters = torch.zeros(1, 3, projector.letters, dtype=torch.long)
    with torch.no_grad():
        _, past = projector(some, some, some, letters, projector.empty(1), torch.zeros(1, dtype=torch.long))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            projector,
            (some, some, some, letters, past, torch.tensor([3])),
            buffer,  # type: ignore[arg-type]
            input_names=["states", "embeds", "before", "letters", "past", "start"],
            output_names=["logits", "present"],
            dynamic_axes={
                "states": {1: "frames"}, "embeds": {1: "frames"}, "before": {1: "frames"}, "letters": {1: "frames"},
                "past": {4: "kept"},
                "logits": {1: "frames"}, "present": {4: "keep"},
            },
            opset_version=18,
            dynamo=False,
            do_constant_folding=False,
        )  # fmt: skip
    model = onnx.load_model_from_string(buffer.getvalue())
    share_weights(model, weights)
    (directory / f"{name}.onnx").write_bytes(model.SerializeToString())
