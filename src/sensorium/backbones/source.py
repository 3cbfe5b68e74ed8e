"""`WeightSource`: what a language model is read from, whatever the form of its files.

Two things implement it: `gguf.GGUF`, a file, and `hf_folder.HFFolder`, a Hugging Face directory. Names, row order and
metadata keys are those of GGUF files, so that the checks of `spec.py`, the graph writer and the tokenizer exist once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class TensorEntry(Protocol):
    """A tensor of a source: its shape in numpy order and its storage type ("Q4_1", "F32", "BF16", ...)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> str: ...


class WeightSource(Protocol):
    """An open language model; every failure is a `SensoriumError`.

    Attributes:
        path: the file or directory, for messages.
        metadata: what is known of the model, under GGUF's keys.
        tensors: by GGUF's names.
        fingerprint: sha256 over everything that changes the numbers.
    """

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorEntry]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def label(self) -> str:
        """ "The model file x.gguf": how a sentence about this model begins."""

    def own_name(self, name: str) -> str:
        """How the files themselves call a tensor."""

    def load(self, name: str) -> np.ndarray:
        """The tensor as a new float32 array, rows in GGUF's order."""

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes as stored, uint8 [rows, bytes per row]."""

    def close(self) -> None: ...
