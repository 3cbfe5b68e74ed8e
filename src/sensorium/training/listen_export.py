"""A projector along time -> safetensors and the ONNX twin that points into it (see `training.export`).

Input `features` float32 [1, frames, dim], any number of frames; output `embeds` float32 [1, positions, backbone dim].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sensorium.training.export import export_twin


def export_listen(projector: Any, dim: int, directory: Path, name: str = "listen") -> None:
    """Write ``name.safetensors`` (float16) and ``name.onnx``; ``dim`` is the width of a feature."""
    free = {"features": {1: "frames"}, "embeds": {1: "positions"}}
    export_twin(projector, {"features": torch.zeros(1, projector.stack + 3, dim)}, ["embeds"], free, directory, name)
