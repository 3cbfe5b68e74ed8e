"""An output projector -> safetensors and the ONNX twin that points into it (see `training.export`).

Inputs are `states`, `embeds` and `before` float32 [1, N, dim], `letters` int64 [1, N, letters], `past` float32
[depth, 2, 1, heads, P, head_dim] and `start` int64 [1]; outputs `logits` float32 [1, N, upsample, units + 1] and
`present`, which is the next `past`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sensorium.training.export import export_twin


def export_output(projector: Any, directory: Path, name: str = "speech") -> None:
    """Write ``name.safetensors`` (float16) and ``name.onnx``."""
    some, start = torch.zeros(1, 3, projector.dim), torch.zeros(1, dtype=torch.long)
    letters = torch.zeros(1, 3, projector.letters, dtype=torch.long)
    with torch.no_grad():
        _, past = projector(some, some, some, letters, projector.empty(1), start)
    inputs = {"states": some, "embeds": some, "before": some, "letters": letters, "past": past, "start": start + 3}
    frames = {1: "frames"}
    free = {
        **dict.fromkeys(("states", "embeds", "before", "letters", "logits"), frames),
        "past": {4: "kept"},
        "present": {4: "keep"},
    }
    export_twin(projector, inputs, ["logits", "present"], free, directory, name)
