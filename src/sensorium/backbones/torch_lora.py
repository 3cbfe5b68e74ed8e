"""What training adds to a torch model: a LoRA beside its linear layers, rows of new tokens behind its output head.

Both change outputs of layers, and only while a run asks for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Additions:
    """Which additions count now: none, unless a run says so."""

    def __init__(self) -> None:
        self._now: object = None

    @contextlib.contextmanager
    def active(self, which: object) -> Iterator[None]:
        """Inside, what was hooked for `which` is added. The caller holds the model's lock."""
        before, self._now = self._now, which
        try:
            yield
        finally:
            self._now = before

    def hook(self, linear: nn.Module, which: object, a: Tensor, b: Tensor) -> None:
        """Let a layer add `B (A x)` of A [r, in] and B [out, r] while `which` is active, and nothing otherwise."""

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output if self._now is not which else output + (inputs[0] @ a.T) @ b.T

        linear.register_forward_hook(add)

    def widen(self, head: nn.Module, which: object, rows: Tensor) -> None:
        """Let an output head score the rows [n, in], too, while `which` is active. What the model does to its logits
        (a cap, a factor) then happens to theirs as well, as in training."""

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output if self._now is not which else torch.cat((output, inputs[0] @ rows.T), dim=-1)

        head.register_forward_hook(add)
