"""Any causal language model of transformers as a `runner.Runner`: embeddings in, logits out, on the CPU or a GPU.

Sequences of a batch may differ in length, so keys and values stand in buffers of our own, each row filled from the
left, and the mask and the positions are given explicitly. What the library does with them is compared with its plain
run when a model is loaded: a family that overlooks one of them is refused, not run wrongly.

Nothing of a repository is executed: `trust_remote_code` is off, weights are safetensors, nothing is looked up online.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensorium.backbones.lora import LoRA
from sensorium.backbones.new_tokens import NewRows
from sensorium.backbones.spec import BackboneSpec
from sensorium.backbones.torch_cache import TorchCache
from sensorium.backbones.torch_lora import Additions
from sensorium.errors import SensoriumError, UsageError

Floats = NDArray[np.float32]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far the explicit run may lie from the plain one, as mean squared error over variance: rounding of the dtype.
_TOLERANCE = {"fp32": 1e-6, "bf16": 2e-2, "fp16": 1e-2}


class TorchModel:
    """A loaded model, shared by the engine of text and that of media: its weights stand in memory once.

    Args:
        directory: a checked Hugging Face directory (`hf_folder.HFFolder`).
        spec: what is known of it.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one.
        dtype: "fp32", "bf16" or "fp16"; "auto" is bf16 on a GPU that has it, else fp16, and fp32 on the CPU.
        threads: threads on the CPU; None leaves torch its own number.

    Raises:
        UsageError: there is no such device here.
        SensoriumError: transformers does not know the model, or does not run it as the engine needs.
    """

    def __init__(
        self, directory: Path, spec: BackboneSpec, device: str = "auto", dtype: str = "auto", threads: int | None = None
    ) -> None:
        self.spec, self.lock, self.additions = spec, threading.RLock(), Additions()
        self.device = _device(device)
        self.dtype_name = _dtype(dtype, self.device)
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        self.module: Any = _loaded(directory, spec.arch, self.device, DTYPES[self.dtype_name])
        self._accepts = set(inspect.signature(self.module.forward).parameters)
        self.embedding = self.module.get_input_embeddings()
        head = self.module.get_output_embeddings()
        if head is None or head.weight.shape[0] != spec.vocab or self.embedding.weight.shape[1] != spec.dim:
            raise SensoriumError(f"{directory} ({spec.arch}) has embeddings of other sizes than its config.json gives.")
        self._masks = _mask_kinds(self.module.config, directory)
        self._check(directory)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        """Embeddings float32 [n, dim] of ids, each in 0..vocab-1."""
        rows = torch.as_tensor(np.asarray(ids, np.int64).reshape(-1), device=self.device)
        values: Tensor = self.embedding(rows)
        return values.float().cpu().numpy()

    @property
    def embedding_scale(self) -> float:
        """What a row of the table is multiplied with when it is looked up."""
        return float(getattr(self.embedding, "embed_scale", None) or 1.0)

    @torch.inference_mode()
    def run(
        self, embeds: Floats, cache: TorchCache, chosen: int, outputs: Sequence[str], added: Any
    ) -> dict[str, Floats]:
        """Append `embeds` [B, S, dim] to every sequence of `cache`; outputs at the last `chosen` positions."""
        count = embeds.shape[1]
        positions = torch.as_tensor(cache.lengths[:, None] + np.arange(count), device=self.device)
        arguments: dict[str, Any] = {
            "inputs_embeds": torch.as_tensor(embeds, device=self.device).to(DTYPES[self.dtype_name]),
            "attention_mask": self._mask(positions, int(cache.lengths.max()) + count),
            "position_ids": positions,
            "past_key_values": cache.layers,
            "use_cache": True,
            "output_hidden_states": "hidden" in outputs,
            "logits_to_keep": max(chosen, 1),
        }
        if "position_ids" not in self._accepts and "kwargs" not in self._accepts:
            arguments.pop("position_ids")
        if "logits_to_keep" not in self._accepts:
            arguments.pop("logits_to_keep")
        with self.lock, self.additions.active(added):
            cache.place(positions)
            found = self.module(**arguments)
        values = {"logits": lambda: found.logits, "hidden": lambda: found.hidden_states[-1]}
        width = {"logits": self.spec.vocab, "hidden": self.spec.dim}
        empty = np.empty((len(embeds), 0, 0), np.float32)
        return {
            name: values[name]()[:, -chosen:].float().cpu().numpy()
            if chosen
            else empty.reshape(len(embeds), 0, width[name])
            for name in outputs
        }

    def add(self, lora: Path | None, rows: NewRows | None) -> object:
        """Make a LoRA file and rows of new tokens ready; what is returned makes `run` add them.

        Raises SensoriumError when the LoRA does not fit.
        """
        which, dtype = object(), DTYPES[self.dtype_name]
        if rows is not None:
            with self.lock:
                head = torch.as_tensor(rows.head).to(self.device, dtype)
                self.additions.widen(self.module.get_output_embeddings(), which, head)
        if lora is None:
            return which
        additions = LoRA(lora, self.spec)
        with self.lock:
            for layer, part, a, b in additions.pairs():
                where = "self_attn" if part in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
                try:
                    linear = self.module.get_submodule(f"model.layers.{layer}.{where}.{part}")
                except AttributeError:
                    raise SensoriumError(
                        f"The LoRA {lora} changes {part} of layer {layer}, which a {self.spec.arch} model has not; "
                        "train it for this backbone."
                    ) from None
                matrices = (torch.as_tensor(matrix).to(self.device, dtype) for matrix in (a, b))
                self.additions.hook(linear, which, *matrices)
        return which

    def _mask(self, positions: Tensor, total: int) -> Any:
        """What each position may attend to, additive [B, 1, S, total]: what stands at or before it in its own row."""
        at = torch.arange(total, device=self.device)
        behind = positions[:, None, :, None] - at
        dtype = DTYPES[self.dtype_name]

        def additive(allowed: Tensor) -> Tensor:
            return torch.zeros(allowed.shape, dtype=dtype, device=self.device).masked_fill_(
                ~allowed, torch.finfo(dtype).min
            )

        masks = {
            kind: additive((behind >= 0) if not window else (behind >= 0) & (behind < window))
            for kind, window in self._masks.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _check(self, directory: Path) -> None:
        """Compare the engine's way with the library's own on a few tokens: two rows of unequal length, in two steps."""
        ids = np.linspace(1, self.spec.vocab - 1, 7).astype(np.int64) % self.spec.vocab
        try:
            with torch.inference_mode():
                tokens = torch.as_tensor(ids, device=self.device)[None]
                plain = self.module(input_ids=tokens, use_cache=False).logits[0, -1].float().cpu().numpy()
            cache = TorchCache(self.spec.layers, 2, 8)
            short = TorchCache(self.spec.layers, 1, 8)
            embeds = self.embed(ids)
            self._feed(short, embeds[None, 3:6])
            long = TorchCache(self.spec.layers, 1, 8)
            self._feed(long, embeds[None, :4])
            self._feed(long, embeds[None, 4:6])
            cache.adopt(0, long)
            cache.adopt(1, short)
            found = self._feed(cache, np.stack([embeds[6:7], embeds[6:7]]))[0, -1]
        except Exception as error:
            raise SensoriumError(
                f"The torch engine cannot run {directory} ({self.spec.arch}): {_reason(error)}; use another model."
            ) from None
        error_share = float(np.square(found - plain).mean() / max(float(plain.var()), 1e-12))
        if not error_share < _TOLERANCE[self.dtype_name]:
            raise SensoriumError(
                f"The torch engine cannot run {directory}: {self.spec.arch} models take no explicit mask and positions "
                f"(its logits differ by {error_share:.1e} of their variance); use another model."
            )

    def _feed(self, cache: TorchCache, embeds: Floats) -> Floats:
        cache.grow(int(cache.lengths.max()) + embeds.shape[1])
        logits = self.run(embeds, cache, 1, ("logits",), None)["logits"]
        cache.lengths += embeds.shape[1]
        return logits


class TorchRunner:
    """A model with or without what training added (`TorchModel.add`); see `runner.Runner`."""

    def __init__(self, model: TorchModel, added: object = None) -> None:
        self.model, self.added = model, added

    def cache(self, batch: int, capacity: int) -> TorchCache:
        """An empty cache for `batch` sequences."""
        return TorchCache(self.model.spec.layers, batch, capacity)

    def binding(self, cache: TorchCache, steps: int, chosen: int, outputs: tuple[str, ...] = ("logits",)) -> _Binding:
        """Runs of `steps` positions with `outputs` at the last `chosen` of them."""
        return _Binding(self, cache, steps, chosen, outputs)


class _Binding:
    def __init__(
        self, runner: TorchRunner, cache: TorchCache, steps: int, chosen: int, outputs: tuple[str, ...]
    ) -> None:
        self._runner, self._cache, self._chosen, self._names = runner, cache, chosen, outputs
        self.embeds = np.zeros((cache.batch, steps, runner.model.spec.dim), np.float32)
        self.outputs: dict[str, Floats] = {}

    def step(self, padding: int = 0) -> None:
        cache, steps = self._cache, self.embeds.shape[1]
        cache.grow(int(cache.lengths.max()) + steps)
        self.outputs = self._runner.model.run(self.embeds, cache, self._chosen, self._names, self._runner.added)
        cache.lengths += steps - padding


def _loaded(directory: Path, kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The module, frozen, on its device; no weight of it is made up."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    options |= {"dtype": dtype, "output_loading_info": True}
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    try:
        try:
            module, info = load(directory, attn_implementation="sdpa", **options)
        except ValueError:  # families without it
            module, info = load(directory, attn_implementation="eager", **options)
        module = module.to(device)
    except (torch.OutOfMemoryError, MemoryError):
        raise SensoriumError(f"{directory} does not fit into the memory of {device}; use a smaller model.") from None
    except Exception as error:
        raise SensoriumError(
            f"transformers cannot load {directory} ({kind}): {_reason(error)}; use a model that it knows."
        ) from None
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise SensoriumError(
            f"{directory} lacks {wrong[0]} of a {kind} model, or has it in another shape; fetch it again."
        )
    return module.eval().requires_grad_(False)


def _mask_kinds(config: Any, directory: Path) -> dict[str, int]:
    """The masks that a model's layers need: {layer type: positions attended to, 0 for all}."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"full_attention": window}
    odd = set(kinds) - {"full_attention", "sliding_attention"}
    if odd:
        raise SensoriumError(f"{directory} has layers of the kind {min(odd)}, which the torch engine cannot run.")
    return {kind: window if kind == "sliding_attention" else 0 for kind in sorted(set(kinds))}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"The device {name} does not exist here: torch sees {torch.cuda.device_count()} GPUs; use device: auto."
        )
    return device


def _dtype(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text[:200] or type(error).__name__).rstrip(".")
