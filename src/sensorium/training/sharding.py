"""Full sharding (FSDP2): every process keeps its share of each block of the backbone and of the projector.

Frozen and trained parameters alike are divided along their first axis; a block's parameters are gathered while it runs,
forward and backward, and given up again. What its gradient sums to is divided the same way, and so is the optimizer's
state. The embedding table and the head stay whole: losses ask for logits in pieces, as many as a process
has targets, and no process may wait for another there.

The settings are torch's defaults, or those of an `accelerate launch` with an FSDP2 configuration.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sensorium.errors import SensoriumError, UsageError


class Sharded:
    """A backbone and a projector, divided among all processes in place.

    Args:
        llm: the backbone, its ``blocks`` in order; on the CPU still, so that no GPU ever holds all of it.
        projector: the projector.
        device: where this process computes.

    Raises:
        SensoriumError: this torch is too old.
        UsageError: accelerate's configuration asks for what is not done here.
    """

    def __init__(self, llm: Any, projector: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if "ignored_params" not in inspect.signature(fully_shard).parameters:
            raise SensoriumError(
                f"train.sharding=full needs torch 2.7 or newer, and this is {torch.__version__}; upgrade torch."
            )
        # nothing behind a module changes its output in place
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self.llm, self.projector = llm, projector
        self._twin = copy.deepcopy(projector).cpu()
        given = {**accelerate_settings(), "mesh": init_device_mesh(device.type, (dist.get_world_size(),))}
        for block in llm.blocks:
            fully_shard(block, **given)
        inside = {id(parameter) for block in llm.blocks for parameter in block.parameters()}
        outside = {parameter for parameter in llm.parameters() if id(parameter) not in inside}
        fully_shard(llm, **given, ignored_params=outside)  # owns nothing, lets a block be gathered while another runs
        fully_shard(projector, **given)

    @contextlib.contextmanager
    def gathered(self, backbone: bool = False) -> Iterator[nn.Module]:
        """Inside, process 0 has in memory, whole, the LoRA and what else learns in the backbone, or all of the
        ``backbone``; the projector is what it yields. All processes must come here."""
        kept = []
        for path, module in self.llm.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                wanted = backbone or parameter.requires_grad or ".lora_" in f"{path}.{name}"
                if isinstance(parameter, DTensor) and wanted:
                    kept.append((module, name, parameter))
        values = {name: whole(value).cpu() for name, value in self.projector.state_dict().items()}
        self._twin.load_state_dict(values)
        try:
            for module, name, parameter in kept:
                value = whole(parameter)
                if dist.get_rank() == 0:
                    module._parameters[name] = nn.Parameter(value.cpu(), requires_grad=parameter.requires_grad)
            yield self._twin
        finally:
            for module, name, parameter in kept:
                module._parameters[name] = parameter


def accelerate_settings() -> dict[str, Any]:
    """What `accelerate launch` with an FSDP configuration asks of torch's ``fully_shard``; else torch's own defaults.

    The plugin is read, and not `Accelerator.prepare`, which wraps one module's forward, wants a GPU, and averages
    losses by process where ours are weighted by targets.
    """
    if not launched_with_fsdp():
        return {"reshard_after_forward": True}
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise UsageError("accelerate's configuration says FSDP version 1; set fsdp_version: 2 under fsdp_config.")
    for name in ("offload_params", "activation_checkpointing"):
        if os.environ.get(f"FSDP_{name.upper()}", "false").lower() == "true":
            raise UsageError(
                f"accelerate's configuration asks for fsdp_{name}, which is not done here; set it to false."
            )
    return {"reshard_after_forward": plugin.reshard_after_forward}


def launched_with_fsdp() -> bool:
    """Whether `accelerate launch` started this process with an FSDP configuration."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which processes may have shares, gathered; all processes must ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """This process's share of a tensor: the tensor itself where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value, on the device of ``tensor`` and divided as it is; each process takes its own share, unasked."""
    value = value.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def divided(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is divided among processes."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())
