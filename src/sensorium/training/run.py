"""`sensorium train` and `sensorium features`: from a recipe to a composition directory, top to bottom."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sensorium import hub
from sensorium.composition import FILE, MANIFEST, Composition, file_sha256
from sensorium.errors import SensoriumError, UsageError
from sensorium.projectors.spec import tokens_for
from sensorium.training.recipe import Recipe, load_recipe
from sensorium.training.scene_store import StorePlan, build

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec


@dataclass(frozen=True)
class Frozen:
    """What a run takes as given: the composition's frozen parts, the catalogue and the plan of the feature store."""

    composition: Composition
    weights: Path
    encoder: Path
    features: FeatureSpec
    catalogue: Path
    plan: StorePlan


def train(recipe: Path, overrides: Sequence[str] = (), resume: Path | None = None) -> Path:
    """Run a recipe.

    Args:
        recipe: the YAML file.
        overrides: ``key=value`` changes.
        resume: the output directory of an interrupted run of the same recipe.

    Returns:
        The directory of the trained composition.
    """
    plan = load_recipe(recipe, overrides)
    output = Path(resume or plan.output)
    if resume and not (output / "recipe.yaml").is_file():
        raise UsageError(f"--resume {resume} is no output directory of a training run.")
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.yaml").write_text(plan.dump(), encoding="utf-8")
    frozen = obtain(plan)
    store = compute_features(frozen)
    _say(f"Training {plan.name}: {plan.train.steps} steps of {plan.train.rows} pictures, features in {store}.")
    if plan.train.processes == 1:
        worker(0, plan, frozen, store, output, "", resume is not None)
    else:
        import torch.multiprocessing as mp

        address = f"tcp://127.0.0.1:{_free_port()}"
        arguments = (plan, frozen, store, output, address, resume is not None)
        mp.start_processes(worker, arguments, nprocs=plan.train.processes, start_method="spawn")
    return output / "composition"


def features(recipe: Path, engine: str = "local") -> Path:
    """Fill the feature store of a recipe and return its directory."""
    if engine != "local":
        raise UsageError(f"--engine is {engine!r}, and this version computes features with local alone; use local.")
    return compute_features(obtain(load_recipe(recipe)))


def obtain(plan: Recipe) -> Frozen:
    """Fetch the frozen parts and the training pictures, and draw up what the feature store holds."""
    from sensorium import encoders
    from sensorium.training.data import catalogue

    composition = Composition.find(plan.composition)
    declared = composition.spec.encoders.get("image")
    if declared is None:
        raise UsageError(f"{composition.path} declares no image encoder; this recipe trains an image projector.")
    weights = hub.fetch(composition.part("backbone"))
    encoder = hub.fetch(composition.part("encoders", "image"))
    spec = encoders.create(declared.kind, encoder, **declared.options).spec
    pictures = catalogue.build(hub.cache_dir("training"), progress=_say)
    store = StorePlan(
        pictures, plan.data.scenes, plan.data.seed, {str(k): v for k, v in plan.data.mix.items()},
        declared.kind, encoder, declared.options, spec.fingerprint,
    )  # fmt: skip
    return Frozen(composition, weights, encoder, spec, pictures, store)


def compute_features(frozen: Frozen) -> Path:
    """Draw and encode what the store lacks, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("Composing and encoding scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("features", total=frozen.plan.scenes)
        return build(frozen.plan, report=lambda done, total: bar.update(task, completed=done, total=total))


def worker(rank: int, plan: Recipe, frozen: Frozen, store: Path, output: Path, address: str, resume: bool) -> None:
    """One process of a run; rank 0 writes."""
    import torch
    import torch.distributed as dist

    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.encoders.base import Grid
    from sensorium.training.backbone import digest_frozen, load_llama
    from sensorium.training.class_features import ClassFeatures
    from sensorium.training.data.scenes import load_items
    from sensorium.training.data.stream import SampleStream
    from sensorium.training.loop import train_loop
    from sensorium.training.projectors import create_projector
    from sensorium.training.scene_store import SceneStore

    world = plan.train.processes
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    if world > 1:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.manual_seed(plan.train.seed)
    assert isinstance(frozen.features.layout, Grid)
    grid = (frozen.features.layout.h, frozen.features.layout.w)
    with GGUF(frozen.weights) as gguf:
        spec, tokenizer = spec_from_gguf(gguf), Tokenizer.from_gguf(gguf)
        dtype = torch.bfloat16 if plan.train.precision == "bf16" else torch.float32
        llm = load_llama(gguf, spec, plan.lora, dtype)
    projector = create_projector(plan.projector, frozen, llm, tokenizer)
    before = digest_frozen(llm)
    scenes = SceneStore(store, plan.data.scenes)
    directions = class_directions(frozen) if plan.data.class_features else None
    stream = SampleStream(
        scenes,
        [item for item in load_items(frozen.catalogue) if item.split == "train"],
        ClassFeatures(directions[0], scenes.cells(30_000)) if directions else None,
        grid,
        tokenizer,
        tokens_for(plan.projector.kind, plan.projector.options, frozen.features),
        rows=plan.train.rows // world,
        row_tokens=plan.train.row_tokens,
        class_share=plan.data.class_features,
        questions={str(k): v for k, v in plan.data.questions.items()},
        yesno_focus=plan.data.yesno_focus,
        seed=plan.train.seed,
        rank=rank,
    )
    if plan.train.compile:
        for block in llm.blocks:
            block.compile()
    began = time.monotonic()

    def report(p: Any) -> None:
        _say(
            f"step {p.step:5d}/{p.steps}  loss {p.loss:.4f}  gradient {p.gradient_norm:.2f}  "
            f"{p.tokens_per_s:.0f} tokens/s  {p.minutes:.1f} min"
        )

    def write(step: int) -> None:
        composition = {"steps": step, "minutes": round((time.monotonic() - began) / 60, 1)}
        write_composition(plan, frozen, projector, llm, output / "composition", spec.fingerprint, composition)

    steps = train_loop(
        projector, llm, stream, plan.train, output, rank=rank, world=world, resume=resume, report=report, snapshot=write
    )
    if digest_frozen(llm) != before:
        raise SensoriumError("a frozen weight of the backbone changed during training; this is a bug, please report it.")
    if rank == 0:
        write(steps)
        _say(f"Frozen weights unchanged (sha256 {before[:12]}). Trained composition: {output / 'composition'}")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def class_directions(frozen: Frozen) -> Any:
    """The encoder's classifier (weight, bias), where it has one."""
    from sensorium import encoders

    declared = frozen.composition.spec.encoders["image"]
    encoder: Any = encoders.create(declared.kind, frozen.encoder, **declared.options)
    if not hasattr(encoder, "class_directions"):
        raise UsageError(f"the encoder {declared.kind} has no classifier; set data.class_features=0 and projector.start=random.")
    return encoder.class_directions()


def write_composition(
    plan: Recipe, frozen: Frozen, projector: Any, llm: Any, directory: Path, backbone: str, run: dict[str, Any]
) -> None:
    """Write composition.yaml, the trained tensors, the ONNX twin and the manifest."""
    from sensorium.training.export import export_projector, save_tensors

    directory.mkdir(parents=True, exist_ok=True)
    cells = frozen.features.layout.cells  # type: ignore[union-attr]
    export_projector(projector, cells, frozen.features.dim, directory)
    files = ["image.onnx", "image.safetensors"]
    spec = frozen.composition.spec.model_dump(mode="json", exclude_defaults=True)
    spec["projectors"] = {
        "image": {
            "kind": plan.projector.kind, "encoder": "image", "weights": "image.safetensors", "onnx": "image.onnx",
            "options": plan.projector.options,
        }
    }  # fmt: skip
    spec.pop("lora", None)
    if plan.lora:
        save_tensors(llm.lora_state(), directory / "lora.safetensors")
        spec["lora"] = {"weights": "lora.safetensors", "active": "media"}
        files.append("lora.safetensors")
    manifest = {
        "schema": 1,
        "recipe": plan.model_dump(mode="json"),
        "data": {"catalogue_sha256": file_sha256(frozen.catalogue), "scenes": plan.data.scenes},
        "run": run,
        "frozen": {"backbone": backbone, "encoders.image": frozen.features.fingerprint},
        "files": {name: file_sha256(directory / name) for name in files},
    }
    (directory / FILE).write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    with hub.atomic_write(directory / MANIFEST) as temporary:
        Path(temporary).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def install(trained: Path, target: Path) -> None:
    """Copy a trained composition over another directory (the packaged `mini`, say)."""
    for name in ("image.onnx", "image.safetensors", "lora.safetensors", FILE, MANIFEST):
        if (trained / name).is_file():
            shutil.copy2(trained / name, target / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
