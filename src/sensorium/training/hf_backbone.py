"""Any causal language model of transformers as a training backbone, read from a Hugging Face directory.

Nothing is said here of single architectures but what their configurations say of windows and of what follows the head.
Whether one can keep the samples of a row apart is not believed but tried when it is loaded (`HFBackbone.try_rows`): two
branches that share a beginning must give what each gives alone through the model's own forward. Those that cannot
(convolutions and recurrent states, attention that counts places instead of positions) are refused with a sentence.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError, UsageError, install
from sensorium.training.backbone import Backbone
from sensorium.training.llama import LINEARS
from sensorium.training.recipe import LoraRecipe

ADAPTER = "default"
NOISE = {torch.float32: 1e-2}  # of logits that should be equal, in their standard deviations
COARSE = 0.3  # the same where activations have fewer digits
ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class HFShape:
    """Sizes of the model; see `backbone.Shape`."""

    dim: int
    layers: int
    heads: int
    vocab: int


class HFBackbone(Backbone):
    """A transformers model behind the interface of `Backbone`; dropout stays off.

    Args:
        model: an ``AutoModelForCausalLM``, frozen here.
        dtype: of the activations.
        master: the weights are in float32 because they will learn, and are cast for each product.
        lora: put an untrained LoRA on every linear layer of its blocks.
    """

    def __init__(self, model: Any, dtype: torch.dtype, *, master: bool = False, lora: LoraRecipe | None = None) -> None:
        super().__init__()
        self.model, self.dtype, self.master = model.eval().requires_grad_(False), dtype, master
        self.config = model.config.get_text_config()
        sizes = (
            getattr(self.config, name, None) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
        dim, layers, heads = (size if isinstance(size, int) else 0 for size in sizes)
        if not (dim and layers and heads):
            raise self._unfit("it has no layers of attention, or not the same everywhere")
        self.shape = HFShape(dim, layers, heads, model.get_output_embeddings().weight.shape[0])
        blocks = [m for m in self.decoder.children() if isinstance(m, nn.ModuleList) and len(m) == self.shape.layers]
        if not blocks:
            raise self._unfit("its layers cannot be found")
        object.__setattr__(self, "blocks", blocks[0])  # not a second name for the parameters of `model`
        kinds = set(getattr(self.config, "layer_types", None) or ())
        if kinds - ATTENTION or "local" in (getattr(self.config, "attention_layers", None) or ()):
            raise self._unfit(f"it has layers of the kind {', '.join(sorted(kinds - ATTENTION)) or 'local'}")
        used = getattr(self.config, "use_sliding_window", True)
        self._window: int = (getattr(self.config, "sliding_window", None) if used else None) or 0
        self._mixed = "sliding_attention" in kinds  # then each kind of layer has its own mask
        if lora:
            self._add_lora(lora)

    @property
    def decoder(self) -> Any:
        """The model below its head."""
        return self.model.get_decoder()

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table, scaled if the table is one that scales."""
        return self.model.get_input_embeddings()(ids).to(self.dtype)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states after the last norm; see `Backbone.forward`."""
        with self._cast():
            out = self.decoder(
                inputs_embeds=embeds.to(self.dtype),
                position_ids=positions,
                attention_mask=self._masks(positions, mask),
                use_cache=False,
            )
        return out[0].to(self.dtype)  # a norm whose weights learn gives float32

    def score(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, vocab] in float32."""
        with self._cast():
            logits = self.model.get_output_embeddings()(hidden.to(self.dtype))
        return self.finish(logits.float())

    def finish(self, logits: Tensor) -> Tensor:
        """What some architectures do behind their head: Cohere multiplies, Granite divides, Gemma 2 caps."""
        logits = logits * (getattr(self.config, "logit_scale", None) or 1.0)
        logits = logits / (getattr(self.config, "logits_scaling", None) or 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    @contextlib.contextmanager
    def without_lora(self) -> Iterator[None]:
        """Inside, the bare backbone answers."""
        layers: list[Any] = [module for module in self.modules() if hasattr(module, "_disable_adapters")]
        try:
            for layer in layers:  # not `enable_adapters`, which also changes what requires gradients
                layer._disable_adapters = True
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def lora_state(self) -> dict[str, Tensor]:
        """As `Backbone.lora_state`; a layer whose name the runtime does not know keeps its whole path."""
        state = {}
        for i, block in enumerate(self.blocks):
            adapted = {path: module for path, module in block.named_modules() if hasattr(module, "lora_A")}
            last = [path.rpartition(".")[2] for path in adapted]
            for path, module in adapted.items():
                name = path.rpartition(".")[2]
                name = name if name in LINEARS and last.count(name) == 1 else path
                a, b = (getattr(module, side)[ADAPTER].weight.detach().float() for side in ("lora_A", "lora_B"))
                state[f"layers.{i}.{name}.lora_A"] = a.contiguous()
                state[f"layers.{i}.{name}.lora_B"] = (b * module.scaling[ADAPTER]).contiguous()
        return state

    def save(self, directory: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` in the dtype of the activations; no LoRA, no new token."""
        state = {name: value.detach().to(self.dtype) for name, value in self.model.state_dict().items()}
        config, kept = self.model.config, copy.copy(self.model.config)
        kept.dtype = self.dtype
        try:
            self.model.config = kept
            self.model.save_pretrained(str(directory), state_dict=state, max_shard_size="1000GB")
        finally:
            self.model.config = config

    def rows(self) -> tuple[Tensor, Tensor | None, float]:
        """Table, head and scale; see `Backbone.rows`."""
        looked_up, head = self.model.get_input_embeddings(), self.model.get_output_embeddings().weight
        scale = float(getattr(looked_up, "embed_scale", None) or 1.0)
        return looked_up.weight, None if head is looked_up.weight else head, scale

    def try_rows(self) -> None:
        """Run a shared beginning with two branches, and the beginning with the second branch alone.

        Raises:
            SensoriumError: they differ, or the model cannot be run so.
        """
        spread = torch.arange(11, device=self.device)
        ids = (spread * 7919 + 13) % self.shape.vocab
        branch = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], device=self.device)
        positions = torch.where(branch == 2, spread - 4, spread)
        seen = ((branch[:, None] == branch) | (branch == 0)) & (spread[:, None] >= spread)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, -1e4)
        alone = branch != 1
        try:
            with torch.no_grad(), self.without_lora(), self._cast():
                hidden = self(self.lookup(ids)[None], positions[None], mask[None, None])
                shared = self.score(hidden[0])[alone]
                wanted = self.model(input_ids=ids[alone][None], use_cache=False).logits[0].float()
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            raise self._unfit(
                f"it does not run with a mask of four dimensions ({type(error).__name__}: {reason})"
            ) from None
        wrong = float((shared - wanted).abs().max() / wanted.std().clamp_min(1e-6))
        if not wrong < NOISE.get(self.dtype, COARSE):
            raise self._unfit(f"the samples of a row change one another's logits (by {wrong:.1g} standard deviations)")

    def _masks(self, positions: Tensor, mask: Tensor) -> Any:
        """The mask as the architecture takes it: narrowed where its layers see a window, for each kind of layer where
        it has several. A window counts positions, so a branch sees as far as it would alone."""
        if not self._window:
            return mask
        far = positions[:, None, :, None] - positions[:, None, None, :] >= self._window
        narrow = mask.masked_fill(far, -1e4)
        return {"full_attention": mask, "sliding_attention": narrow} if self._mixed else narrow

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        if self.master and self.dtype != torch.float32:
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()

    def _add_lora(self, lora: LoraRecipe) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from transformers.pytorch_utils import Conv1D
        except ImportError:
            raise SensoriumError(f"A LoRA on a Hugging Face backbone needs peft; {install('hf')}.") from None
        inside = {id(module) for module in self.blocks.modules() if isinstance(module, nn.Linear | Conv1D)}
        targets = [name for name, module in self.model.named_modules() if id(module) in inside]
        if not targets:
            raise self._unfit("its blocks hold no linear layer for a LoRA")
        settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says which way round the weights of GPT-2 lie
            inject_adapter_in_model(LoraConfig(**settings, lora_dropout=0.0, bias="none"), self.model, ADAPTER)
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    def _unfit(self, reason: str) -> SensoriumError:
        return SensoriumError(
            f"A backbone of type {self.config.model_type} cannot be trained with: {reason}; choose another."
        )


def load_hf(
    directory: Path, lora: LoraRecipe | None = None, dtype: torch.dtype = torch.bfloat16, *, master: bool = False
) -> HFBackbone:
    """A Hugging Face directory as a frozen backbone, with an untrained LoRA where one is asked for.

    Only files of the directory are read, weights only from safetensors, and none of its code is run.

    Args:
        directory: holds ``config.json`` and safetensors.
        lora: rank and scale of a LoRA on every linear layer.
        dtype: of the activations, and of frozen weights.
        master: keep the weights in float32 whatever the activations are, because they will learn.

    Raises:
        UsageError: there is no such directory.
        SensoriumError: transformers is missing, the model cannot be read, its weights are incomplete, or it cannot keep
            the samples of a row apart.
    """
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory} is no Hugging Face directory; it holds no config.json.")
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise SensoriumError(f"A Hugging Face backbone needs transformers; {install('hf')}.") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(directory),
            dtype=torch.float32 if master else dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise nearly anything for a broken directory
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
        raise SensoriumError(
            f"The backbone {directory} cannot be read ({reason}); give a causal language model."
        ) from None
    model, found = loaded
    lacking = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if lacking:
        raise SensoriumError(
            f"The backbone {directory} lacks {len(lacking)} of its weights, such as {lacking[0][:80]}; copy it again."
        )
    llm = HFBackbone(model, dtype, master=master, lora=lora)
    llm.try_rows()
    return llm
