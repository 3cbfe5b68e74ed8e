"""The backbone as a torch module: what training asks of it, and how it is read from the runtime's own files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_names import load_hf_state
from sensorium.backbones.spec import BackboneSpec
from sensorium.backbones.traits import Traits
from sensorium.training.new_tokens import NewTokens
from sensorium.training.recipe import LoraRecipe
from sensorium.training.sharding import mine

if TYPE_CHECKING:
    from sensorium.training.llama import Llama


class Shape(Protocol):
    """The sizes of a causal language model: hidden width, layers, attention heads, rows of the embedding table."""

    @property
    def dim(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def vocab(self) -> int: ...


class Backbone(nn.Module):
    """A causal language model as training uses it; `llama.Llama` and `hf_backbone.HFBackbone` are two.

    Embeddings in, hidden states out, with an explicit mask, so that several samples can share a row, and logits where a
    target stands alone. What learns is told by `part_of` a parameter's name; trained and frozen parameters stand side
    by side in every block, each a tensor of its own.

    Attributes:
        shape: its sizes; ``vocab`` leaves new tokens out.
        dtype: of the activations and of frozen weights; what learns is float32.
        blocks: its layers in order, each of which may be compiled or sharded.
        new_tokens: further rows of vocabulary, from id ``shape.vocab`` on, or None.
    """

    shape: Shape
    dtype: torch.dtype
    blocks: nn.ModuleList
    new_tokens: NewTokens | None

    def __init__(self) -> None:
        super().__init__()
        self.new_tokens = None

    def lookup(self, ids: Tensor) -> Tensor:
        """What the backbone itself takes for ids below ``shape.vocab``, [..., dim]: its table's rows, scaled if it
        scales them."""
        raise NotImplementedError

    def score(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, shape.vocab] in float32, through the backbone's own head."""
        raise NotImplementedError

    def finish(self, logits: Tensor) -> Tensor:
        """What the backbone does to the logits behind its head (a soft cap, say); `score` has done it."""
        return logits

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states after the last norm.

        Args:
            embeds: [B, S, dim].
            positions: [B, S] integers, restarted for every branch.
            mask: [B, 1, S, S] additive mask in the model's dtype (0 = may attend, a large negative number = may not).
        """
        raise NotImplementedError

    def lora_state(self) -> dict[str, Tensor]:
        """The LoRA by the names that inference merges, ``layers.{i}.{q_proj, ...}.lora_{A, B}``; the scale is folded
        into B."""
        raise NotImplementedError

    def rows(self) -> tuple[Tensor, Tensor | None, float]:
        """The embedding table [vocab, dim], the head [vocab, dim] or None where it is the table, and what a row of the
        table is multiplied with when it is looked up."""
        raise NotImplementedError

    def add_tokens(self, names: Sequence[str]) -> None:
        """Let ``names`` be tokens, from id ``shape.vocab`` on, with untrained rows."""
        table, head, scale = self.rows()
        self.new_tokens = NewTokens(names, self.shape.vocab, table, head, scale)

    def without_lora(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the bare backbone answers."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings, [..., dim], of the vocabulary and of new tokens."""
        return self.lookup(ids) if self.new_tokens is None else self.new_tokens.embed(ids, self.lookup)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, vocab + new tokens] in float32; call it on target positions only."""
        scores = self.score(hidden)
        if self.new_tokens is None:
            return scores
        return torch.cat((scores, self.finish(self.new_tokens.logits(hidden.to(self.dtype)))), dim=-1)


def part_of(name: str) -> str:
    """Which part of a recipe's ``trains`` a backbone's parameter belongs to: "lora", "tokens" or "backbone"."""
    if ".lora_" in name:
        return "lora"
    return "tokens" if name.startswith("new_tokens.") else "backbone"


def load_llama(
    gguf: GGUF,
    spec: BackboneSpec,
    lora: LoraRecipe | None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    master: bool = False,
) -> Llama:
    """The dequantised backbone, frozen, with an untrained LoRA where the recipe asks for one.

    With ``master`` its weights are kept in float32 whatever the activations are, because they will learn.

    Raises:
        SensoriumError: its positions are scaled in a way that nobody here knows.
    """
    from sensorium.training.llama import Llama  # which is a `Backbone`, and so needs this module first

    rank, alpha = (lora.rank, lora.alpha) if lora else (0, 0.0)
    return Llama(Traits.of(gguf, spec), load_hf_state(gguf), rank=rank, alpha=alpha, dtype=dtype, master=master)


def digest_frozen(module: nn.Module) -> str:
    """sha256 over every parameter that does not learn, or this process's share of it: equal before and after training,
    or it was not frozen."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(mine(parameter.detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
