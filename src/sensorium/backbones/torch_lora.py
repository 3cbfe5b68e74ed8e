"""A LoRA beside the linear layers of a torch model, added to their outputs only while a run asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


class Additions:
    """Which LoRA is added to the outputs of linear layers now: none, unless a run says so."""

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
