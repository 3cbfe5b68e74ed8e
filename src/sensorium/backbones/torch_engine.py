"""The engine of any Hugging Face causal language model, on the CPU or a GPU: `engine.Engine` over transformers.

Needs the extra `torch`. It answers as the ONNX engine does (`tests/test_torch_engine.py` compares them), and is there
for the families that the graph writer lacks and for GPUs.
"""

from __future__ import annotations

from pathlib import Path

from sensorium.backbones.engine import Engine
from sensorium.backbones.torch_runner import TorchModel, TorchRunner

__all__ = ["TorchEngine", "TorchModel"]


class TorchEngine(Engine):
    """A language model ready to run; the methods are `Engine`'s.

    Args:
        model: the loaded model; several engines may share it.
        lora: a LoRA file that this engine adds to it (see `lora.LoRA`), or None for the model as published.
        prefix_cache_bytes: how much memory of the device earlier prompts may take; 0 turns the prefix cache off.

    Raises:
        SensoriumError: the LoRA does not fit.
    """

    def __init__(self, model: TorchModel, lora: Path | None = None, prefix_cache_bytes: int = 256 << 20) -> None:
        spec = model.spec
        runner = TorchRunner(model, model.add(lora) if lora else None)
        self._begin(spec, model.dtype_name, spec.context, model.embed, runner, prefix_cache_bytes)
