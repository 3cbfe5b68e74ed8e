"""The engine of any Hugging Face causal language model, on the CPU or a GPU: `engine.Engine` over transformers.

Needs the extra `torch`. It answers as the ONNX engine does (`tests/test_torch_engine.py` compares them), and is there
for the families that the graph writer lacks and for GPUs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.backbones.embeddings import Lookup, beside
from sensorium.backbones.engine import Engine
from sensorium.backbones.new_tokens import NewRows
from sensorium.backbones.torch_runner import TorchModel, TorchRunner

__all__ = ["TorchEngine", "TorchModel"]


class TorchEngine(Engine):
    """A language model ready to run; the methods are `Engine`'s.

    Args:
        model: the loaded model; several engines may share it.
        lora: a LoRA file that this engine adds to it (see `lora.LoRA`), or None.
        new_tokens: a file of rows behind its vocabulary (see `new_tokens.NewRows`), or None. With neither, it is the
            model as published.
        prefix_cache_bytes: how much memory of the device earlier prompts may take; 0 turns the prefix cache off.

    Raises:
        SensoriumError: the LoRA or the new tokens do not fit.
    """

    def __init__(
        self,
        model: TorchModel,
        lora: Path | None = None,
        new_tokens: Path | None = None,
        prefix_cache_bytes: int = 256 << 20,
    ) -> None:
        spec, added = model.spec, None
        embed: Lookup = model.embed
        rows = NewRows(new_tokens, spec) if new_tokens else None
        if lora or rows:
            added = model.add(lora, rows)
        if rows:
            embed = beside(embed, rows.embeddings * np.float32(model.embedding_scale), spec.vocab)
            spec = replace(spec, vocab=spec.vocab + len(rows))
        self._begin(spec, model.dtype_name, spec.context, embed, TorchRunner(model, added), prefix_cache_bytes)
