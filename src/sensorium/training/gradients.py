"""One gradient out of those of all processes: whole tensors in one message, divided ones as their shares come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sensorium.training.sharding import DTensor, mine


def share(tensors: Mapping[str, Tensor], loss: float, weight: float, stop: bool) -> tuple[float, bool]:
    """Turn each process's gradient into that of all targets, in one message; the same for the loss.

    A process with more targets counts for more, so the step is the one that a single process would take. The message
    also carries whether any process was asked to stop, so that all stop behind the same step. A tensor without a
    gradient (of a batch without media, say) takes part with zeros: every process sends the same message.

    The gradient of a divided tensor has been averaged over the processes already, in the backward pass, of losses times
    their weight (`weighted`).

    Returns:
        The mean loss over all targets, and whether to stop.
    """
    own = [tensor for tensor in tensors.values() if not isinstance(tensor, DTensor)]
    divided = [tensor for tensor in tensors.values() if isinstance(tensor, DTensor)]
    grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in own]
    device = next(iter(tensors.values())).device
    ours = torch.tensor([loss * weight, weight, float(stop)], dtype=torch.float32, device=device)
    scale = 1.0 if divided else weight  # then the loss was multiplied by it
    flat = torch.cat([*(g.reshape(-1) * scale for g in grads), ours])
    dist.all_reduce(flat)
    total_loss, total, stops = (float(v) for v in flat[-3:])
    flat /= total
    at = 0
    for tensor, grad in zip(own, grads):
        tensor.grad = flat[at : at + grad.numel()].view_as(grad)
        at += grad.numel()
    for tensor in divided:
        if tensor.grad is not None:
            mine(tensor.grad).mul_(dist.get_world_size() / total)
    return total_loss / total, stops > 0


def weighted(mean: Tensor, weight: float, tensors: Mapping[str, Tensor]) -> Tensor:
    """What the backward pass starts from, so that the gradients of divided tensors can be summed on the way."""
    return mean * weight if any(isinstance(tensor, DTensor) for tensor in tensors.values()) else mean


def clip(tensors: Sequence[Tensor], limit: float) -> Tensor:
    """Scale the gradients so that their norm is at most ``limit``; the norm before that."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return torch.nn.utils.clip_grad_norm_(list(tensors), limit)
    square = torch.zeros(2, device=tensors[0].device)  # of divided tensors, and of whole ones
    for tensor in tensors:
        if tensor.grad is not None:
            square[0 if isinstance(tensor, DTensor) else 1] += mine(tensor.grad).float().pow(2).sum()
    dist.all_reduce(square[:1])
    norm = square.sum().sqrt()
    for tensor in tensors:
        if tensor.grad is not None:
            mine(tensor.grad).mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
