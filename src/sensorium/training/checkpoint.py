"""Atomic checkpoints of what is trained: tensors, optimizer, step and random state; never a frozen weight."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError

FILE = "checkpoint.safetensors"


def save(directory: Path, step: int, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> None:
    """Write a checkpoint; a reader sees the old one or the new one, never a part."""
    from safetensors.torch import save_file

    state = {f"model.{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for key, value in slots.items():
            state[f"optimizer.{index}.{key}"] = torch.as_tensor(value).contiguous()
    state["rng"] = torch.get_rng_state()
    temporary = directory / (FILE + ".tmp")
    save_file(state, str(temporary), metadata={"step": str(step), "extra": json.dumps(extra)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(directory / FILE)


def load(directory: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """Restore a checkpoint into the given tensors and optimizer.

    Returns:
        The step to go on with, and the extra values.

    Raises:
        SensoriumError: there is none, or it is of another recipe.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / FILE
    try:
        with safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise SensoriumError(f"{directory} holds no checkpoint to resume from; give the output directory of a run.") from None
    except (SafetensorError, OSError) as error:
        raise SensoriumError(f"{path} cannot be read ({error}); delete it and train again.") from None
    saved = {name.removeprefix("model.") for name in state if name.startswith("model.")}
    if saved != set(tensors) or any(state[f"model.{n}"].shape != t.shape for n, t in tensors.items()):
        raise SensoriumError(f"{path} was written by a recipe with other trained parts; resume with that recipe.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(state[f"model.{name}"])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            slots.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    torch.set_rng_state(state["rng"])
    return int(metadata.get("step", 0)), json.loads(metadata.get("extra", "{}"))
