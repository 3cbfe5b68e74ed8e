"""Atomic checkpoints of what is trained: tensors, optimizer state, step, position in the data, random state of every
process; never a frozen weight.

Tensors are whole, however they are divided among processes: a run may be resumed with another number of them, or with
another `train.sharding`.

The header also holds the *facts* of the run: its recipe and the fingerprints of its frozen parts. A checkpoint is
resumed with the same facts or refused, and the sentence names the first one that differs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.training.agreement import stacked
from sensorium.training.sharding import like, whole

FILE = "checkpoint.safetensors"


def collect(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, world: int = 1) -> dict[str, Tensor]:
    """What a checkpoint holds, whole and in memory; all processes must ask for it."""
    state = {f"model.{name}": whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():  # by name: the order of the optimizer's groups depends on the recipe
        for key, value in optimizer.state.get(tensor, {}).items():
            state[f"optimizer.{key}.{name}"] = whole(torch.as_tensor(value)).cpu().contiguous()
    state["rng"] = stacked(torch.get_rng_state(), world)
    if torch.cuda.is_available():
        state["rng.cuda"] = stacked(torch.cuda.get_rng_state(), world)
    return state


def save(
    directory: Path,
    step: int,
    state: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint of what `collect` gave; a reader sees the old one or the new one, never a part.

    Raises:
        SensoriumError: it cannot be written (a full disk, say); the previous one is still whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {"step": str(step), "extra": json.dumps(dict(extra)), "facts": json.dumps(dict(facts or {}))}
    temporary = directory / (FILE + ".tmp")
    try:
        save_file(dict(state), str(temporary), metadata=header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(directory / FILE)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix("Error while serializing: ")
        before = "the one before it is whole, so make room and resume"
        raise SensoriumError(
            f"The checkpoint of step {step} cannot be written to {directory} ({reason}); "
            f"{before if (directory / FILE).is_file() else 'make room and start again'}."
        ) from None


def check(directory: Path, facts: Mapping[str, Any]) -> int:
    """Read a checkpoint's header alone.

    Returns:
        The step to go on with.

    Raises:
        SensoriumError: there is no checkpoint, it is damaged, or it was written with other facts.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / FILE
    if not path.is_file():
        raise SensoriumError(f"{directory} holds no checkpoint to resume from; give the output directory of a run.")
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
        step, written = int(header["step"]), json.loads(header["facts"])
        if step < 0 or not isinstance(written, dict):
            raise ValueError("a senseless header")
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    for key in sorted({*written, *facts}):
        if written.get(key) != facts.get(key):
            before, now = (_short(side[key]) if key in side else "none" for side in (written, facts))
            raise SensoriumError(
                f"{path} was written with {key} = {before}, and now it is {now}; resume with the recipe and the parts "
                "of that run, or train into another output."
            )
    return step


def load(
    directory: Path,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> tuple[int, dict[str, Any]]:
    """Restore a checkpoint into the given tensors and optimizer, and this process's random state.

    Returns:
        The step to go on with, and the extra values.

    Raises:
        SensoriumError: there is none, it is damaged, or it is of another recipe.
    """
    from safetensors import SafetensorError, safe_open

    step, path = check(directory, facts or {}), directory / FILE
    try:
        with safe_open(str(path), "pt") as file:
            extra = json.loads((file.metadata() or {})["extra"])
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        random, on_gpu = torch.atleast_2d(state.pop("rng")), state.pop("rng.cuda", None)
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    saved = {name.removeprefix("model.") for name in state if name.startswith("model.")}
    if saved != set(tensors) or any(state[f"model.{n}"].shape != t.shape for n, t in tensors.items()):
        raise SensoriumError(f"{path} was written by a recipe with other trained parts; resume with that recipe.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(like(state[f"model.{name}"], tensor))
    for name, value in state.items():
        kind, _, rest = name.partition(".")
        key, _, target = rest.partition(".")
        if kind == "optimizer" and target in tensors:
            tensor = tensors[target]
            here = key == "step" and not optimizer.defaults.get("fused")  # only a fused step counts where tensors lie
            optimizer.state[tensor][key] = value if here else like(value, tensor)
    if rank < len(random):  # resumed with more processes, the others keep the state that their seed gave them
        torch.set_rng_state(random[rank].clone())  # a row of its own: torch reads the storage from its start
        if on_gpu is not None and rank < len(on_gpu) and torch.cuda.is_available():
            torch.cuda.set_rng_state(on_gpu[rank].clone())
    return step, dict(extra)


def trained(directory: Path) -> dict[str, Tensor]:
    """The trained tensors of a checkpoint, without what only its own run needs.

    Raises:
        SensoriumError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / FILE
    try:
        with safe_open(str(path), "pt") as file:
            names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118
            return {name.removeprefix("model."): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> SensoriumError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
    return SensoriumError(f"{path} is damaged ({reason}); delete it and train again.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
