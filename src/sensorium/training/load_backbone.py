"""The backbone of a run: read from a GGUF file or a Hugging Face directory, with what the recipe adds to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_folder import HFFolder
from sensorium.backbones.hf_spec import spec_of
from sensorium.backbones.new_tokens import WithNewTokens
from sensorium.backbones.source import WeightSource
from sensorium.backbones.spec import BackboneSpec, spec_from_gguf
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.composition import Composition
from sensorium.errors import SensoriumError
from sensorium.training.recipe import Recipe

WRITABLE = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Architectures of GGUF files of which `training.hf_write` writes a Hugging Face directory, by transformers' name."""


@contextlib.contextmanager
def open_source(path: Path, form: str) -> Iterator[WeightSource]:
    """The file or the directory, open; ``form`` is "gguf" or "hf"."""
    with HFFolder(path) if form == "hf" else GGUF(path) as source:
        yield source


def check_backbone(composition: Composition, path: Path, trained: bool) -> str:
    """The fingerprint of a backbone, once it is known to be one that training can run in the declared chat template.

    Args:
        composition: declares it.
        path: its file or directory.
        trained: the whole of it will learn, so it will have to be written, too.

    Raises:
        SensoriumError: it cannot be trained with; one sentence.
    """
    from sensorium.backbones.traits import Traits
    from sensorium.seams import check_template

    with open_source(path, composition.spec.backbone.format) as source:
        spec: Any
        if isinstance(source, HFFolder):
            spec = spec_of(source)
        else:
            spec = spec_from_gguf(source)
            Traits.of(source, spec)
            if trained:
                assert isinstance(source, GGUF)
                check_writable(source, spec)
        check_template(composition, spec)
        return str(spec.fingerprint)


def check_writable(gguf: GGUF, spec: BackboneSpec) -> None:
    """Refuse, before anything is trained, a model of which no directory could be written.

    Raises:
        SensoriumError: one sentence.
    """
    kind = gguf.metadata.get("tokenizer.ggml.model")
    reason = ""
    if spec.arch not in WRITABLE or spec.rope_scaling != "none" or spec.sliding_window:
        scaled = " with stretched positions" if spec.rope_scaling != "none" else ""
        reason = f"a {spec.arch} model{scaled}"
    elif kind != "gpt2":
        reason = f"a tokenizer of the kind {kind!r}"
    if reason:
        raise SensoriumError(
            f"{gguf.path} holds {reason}, of which no Hugging Face directory is written, so the whole backbone cannot "
            "be trained from it; take the model's own directory (format: hf), or train a lora."
        )


def load_backbone(plan: Recipe, composition: Composition, path: Path, fingerprint: str) -> tuple[Any, Any]:
    """The model, frozen, and its tokenizer.

    With the recipe's LoRA and new tokens, untrained; its weights in float32 where a stage trains all of them.

    Args:
        plan: the recipe.
        composition, path, fingerprint: which backbone, its file or directory, and what `check_backbone` gave.

    Returns:
        A `backbone.Backbone` and a `prompt.Tokens`.
    """
    import torch

    from sensorium.training.backbone import load_llama
    from sensorium.training.hf_backbone import load_hf

    dtype = torch.bfloat16 if plan.plan()[0].train.precision == "bf16" else torch.float32
    tokenizer: Any
    with open_source(path, composition.spec.backbone.format) as source:
        tokenizer = Tokenizer.from_gguf(source)
        if isinstance(source, HFFolder):
            llm: Any = load_hf(path, plan.lora, dtype, master=plan.trains_backbone)
        else:
            assert isinstance(source, GGUF)
            spec = spec_from_gguf(source, fingerprint)
            llm = load_llama(source, spec, plan.lora, dtype, master=plan.trains_backbone)
    if plan.tokens:
        llm.add_tokens(plan.tokens.names)
        tokenizer = WithNewTokens(tokenizer, plan.tokens.names, llm.shape.vocab)
    return llm, tokenizer
