"""Encoders as torch modules, for recipes that train a tower itself (`unfreeze` of a recipe of kind `clip`).

Each reads the published file that the ONNX encoder of the same kind reads, gives the same features, and gives its
weights back under the published names, so that the encoder's own graph writer runs what was trained. A new tower is
one file and one line of ``KINDS``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sensorium.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Tower(Protocol):
    """What each of them is besides a `torch.nn.Module`."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Features of a batch: [B, cells, dim] of pictures uint8 [B, side, side, 3], [B, dim] of (ids, mask) [B, T]."""
        ...

    def published(self) -> Mapping[str, np.ndarray]:
        """All weights by their published names, float32: what the encoder's own reader takes."""
        ...


class _Kind(NamedTuple):
    module: str
    name: str
    arguments: tuple[Any, ...] = ()  # those that stand before the weights


KINDS = {
    "minilm": _Kind("bert", "Bert"),
    "efficientnet-lite0": _Kind("efficientnet_lite", "EfficientNetLite", (0,)),
    "efficientnet-lite1": _Kind("efficientnet_lite", "EfficientNetLite", (1,)),
    "efficientnet-lite2": _Kind("efficientnet_lite", "EfficientNetLite", (2,)),
}


def check(kind: str, where: str) -> None:
    """Refuse a kind of encoder that has no torch module, before anything is fetched. Raises UsageError."""
    if kind not in KINDS:
        able = ", ".join(sorted(KINDS))
        raise UsageError(f"{where}: the encoder {kind!r} cannot be unfrozen; only {able} can, so leave it frozen.")


def load(kind: str, weights: Path) -> Any:
    """The tower of a kind with the weights of a file, as a module whose parameters learn.

    Raises:
        SensoriumError: the file does not hold the weights of that kind.
    """
    made = KINDS[kind]
    return getattr(import_module(f"{__name__}.{made.module}"), made.name)(*made.arguments, weights)


def held(tower: Any) -> str:
    """sha256 over what does not learn of a tower, batch norms' statistics included: equal before and after training, or
    it was not frozen."""
    learns = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    digest = hashlib.sha256()
    for name, value in tower.published().items():
        if name not in learns:
            digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()
