"""`sensorium train` and `sensorium features`: from a recipe to a composition directory, top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium import hub
from sensorium.composition import Composition, file_sha256
from sensorium.encoders.base import Grid
from sensorium.errors import SensoriumError, UsageError
from sensorium.projectors.spec import tokens_for
from sensorium.training.recipe import Recipe, facts, load_recipe
from sensorium.training.scene_store import SceneStore, StorePlan, build

if TYPE_CHECKING:
    from torch import nn

    from sensorium.encoders.base import FeatureSpec
    from sensorium.training.llama import Llama

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Frozen:
    """What a run takes as given: the composition's frozen parts, the catalogue and the plan of the feature store.

    Attributes:
        composition: declares the frozen parts.
        weights, encoder: their files.
        features: the encoder's seam.
        catalogue, plan: the named pictures and what is drawn from them.
        fingerprints: of each frozen part, as the manifest lists them.
    """

    composition: Composition
    weights: Path
    encoder: Path
    features: FeatureSpec
    catalogue: Path
    plan: StorePlan
    fingerprints: dict[str, str]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the encoder's cells."""
        layout = self.features.layout
        assert isinstance(layout, Grid)
        return layout.h, layout.w


def train(recipe: Path, overrides: Sequence[str] = (), resume: Path | None = None) -> Path:
    """Run a recipe.

    Args:
        recipe: the YAML file.
        overrides: ``key=value`` changes.
        resume: the output directory of an interrupted run of the same recipe.

    Returns:
        The directory of the trained composition.

    Raises:
        UsageError: the recipe or the call is wrong.
        SensoriumError: a part, a picture, a checkpoint or the machine is at fault.
        KeyboardInterrupt: the run was interrupted; a checkpoint was written if a step had been taken.
    """
    plan = load_recipe(recipe, overrides)  # before torch is imported, which takes seconds

    from sensorium.training import checkpoint
    from sensorium.training.processes import run_ranks

    output = Path(resume or plan.output)
    if resume and not (output / RECIPE).is_file():
        raise UsageError(f"--resume {resume} is no output directory of a training run; it holds no {RECIPE}.")
    if not resume and (output / checkpoint.FILE).exists():
        raise UsageError(
            f"{output} holds the checkpoint of a run already; continue it with --resume {output}, or choose another "
            "place with --set output=DIR."
        )
    frozen = obtain(plan)
    kept = {**facts(plan), "data.catalogue": file_sha256(frozen.catalogue), **frozen.fingerprints}
    if resume:
        checkpoint.check(output, kept)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE).write_text(plan.dump(), encoding="utf-8")
    except OSError as error:
        raise SensoriumError(f"The output {output} cannot be written ({error.strerror}); choose another.") from None
    store = compute_features(frozen)
    _say(f"Training {plan.name}: {plan.train.steps} steps of {plan.train.rows} pictures; features in {store}.")
    arguments = (plan, frozen, kept, store, output, resume is not None)
    try:
        if plan.train.processes == 1:
            worker(0, "", *arguments)
        else:
            run_ranks(worker, plan.train.processes, arguments)
    except KeyboardInterrupt:
        if (output / checkpoint.FILE).is_file():
            _say(f"Interrupted; continue with: sensorium train {recipe} --resume {output}")
        raise
    return output / "composition"


def features(recipe: Path, engine: str = "local") -> Path:
    """Fill the feature store of a recipe and return its directory."""
    if engine != "local":
        raise UsageError(f"--engine is {engine!r}, and this version computes features with local alone; use local.")
    return compute_features(obtain(load_recipe(recipe)))


def obtain(plan: Recipe) -> Frozen:
    """Fetch the frozen parts and the training pictures, check their seams, and plan the feature store."""
    from sensorium import encoders

    composition = Composition.find(plan.composition)
    declared = composition.spec.encoders.get("image")
    if declared is None:
        raise UsageError(f"{composition.path} declares no image encoder; this recipe trains an image projector.")
    weights = hub.fetch(composition.part("backbone"))
    encoder = hub.fetch(composition.part("encoders", "image"))
    made: Any = encoders.create(declared.kind, encoder, **declared.options)
    if not isinstance(made.spec.layout, Grid):
        raise UsageError(f"{composition.path}: the encoder {declared.kind} gives no grid; use another for pictures.")
    tokens_for(plan.projector.kind, plan.projector.options, made.spec)
    if (plan.data.class_features or plan.projector.start == "concepts") and not hasattr(made, "class_directions"):
        raise UsageError(
            f"The encoder {declared.kind} has no classifier; set data.class_features=0 and projector.start=random."
        )
    pictures = _catalogue(plan)
    store = StorePlan(
        pictures, plan.data.scenes, plan.data.seed, {str(k): v for k, v in plan.data.mix.items()},
        declared.kind, encoder, declared.options, made.spec.fingerprint,
    )  # fmt: skip
    fingerprints = {"backbone": _fingerprint(weights), "encoders.image": made.spec.fingerprint}
    return Frozen(composition, weights, encoder, made.spec, pictures, store, fingerprints)


def _fingerprint(weights: Path) -> str:
    from sensorium.backbones.gguf import GGUF

    with GGUF(weights) as gguf:
        return gguf.fingerprint


def _catalogue(plan: Recipe) -> Path:
    """The recipe's own catalogue, or the one of registry pictures."""
    if plan.data.catalogue:
        path = Path(plan.data.catalogue)
        if not path.is_file():
            raise SensoriumError(f"The catalogue {path} does not exist or is no file; correct data.catalogue.")
        return path
    from sensorium.training.data.catalogue import registry_catalogue

    return registry_catalogue()


def compute_features(frozen: Frozen) -> Path:
    """Draw and encode what the store lacks, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("Composing and encoding scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("features", total=frozen.plan.scenes)
        return build(frozen.plan, report=lambda done, total: bar.update(task, completed=done, total=total))


def worker(
    rank: int, address: str, plan: Recipe, frozen: Frozen, kept: dict[str, Any], store: Path, output: Path, resume: bool
) -> None:
    """One process of a run; rank 0 writes. ``kept`` is what a checkpoint and the run that resumes it have in common."""
    import torch
    import torch.distributed as dist

    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.backbones.threads import physical_cores
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.training.backbone import digest_frozen, load_llama
    from sensorium.training.compose_task import ComposeTask
    from sensorium.training.loop import train_loop
    from sensorium.training.processes import StopRequest
    from sensorium.training.projectors import create_projector
    from sensorium.training.write import write_composition

    world = plan.train.processes
    if world > 1:
        torch.set_num_threads(max(1, physical_cores() // world))
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.manual_seed(plan.train.seed)
    with GGUF(frozen.weights) as gguf:
        spec, tokenizer = spec_from_gguf(gguf, frozen.fingerprints["backbone"]), Tokenizer.from_gguf(gguf)
        llm = load_llama(gguf, spec, plan.lora, torch.bfloat16 if plan.train.precision == "bf16" else torch.float32)
    scenes = SceneStore(store, plan.data.scenes)
    projector = create_projector(plan.projector, frozen, llm, tokenizer, scenes)
    if rank == 0:
        _say(parts_table(frozen, projector, llm))
    before = digest_frozen(llm)
    stream = _stream(rank, plan, frozen, scenes, tokenizer)
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
        write_composition(
            plan, frozen.composition, frozen.features, projector, llm, output / "composition", frozen.fingerprints,
            data={"catalogue_sha256": kept["data.catalogue"], "scenes": plan.data.scenes},
            run={"steps": step, "minutes": round((time.monotonic() - began) / 60, 1)},
        )  # fmt: skip

    with StopRequest() as stopping:
        steps = train_loop(
            ComposeTask(projector, llm, stream, plan.train.learning_rate), plan.train, output,
            rank=rank, world=world, resume=resume, facts=kept, stopping=stopping, report=report, snapshot=write,
        )  # fmt: skip
    if digest_frozen(llm) != before:
        raise SensoriumError(
            "A frozen weight of the backbone changed during training; this is a bug, please report it."
        )
    if rank == 0:
        write(steps)
        _say(f"Frozen weights unchanged (sha256 {before[:12]}). Trained composition: {output / 'composition'}")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def _stream(rank: int, plan: Recipe, frozen: Frozen, scenes: SceneStore, tokenizer: Any) -> Any:
    """This rank's batches."""
    from sensorium.training.class_features import ClassFeatures
    from sensorium.training.data.scenes import load_items
    from sensorium.training.data.stream import SampleStream

    directions = class_directions(frozen) if plan.data.class_features else None
    return SampleStream(
        scenes,
        [item for item in load_items(frozen.catalogue) if item.split == "train"],
        ClassFeatures(directions[0], scenes.cells(30_000)) if directions else None,
        frozen.grid,
        tokenizer,
        tokens_for(plan.projector.kind, plan.projector.options, frozen.features),
        rows=plan.train.rows // plan.train.processes,
        row_tokens=plan.train.row_tokens,
        class_share=plan.data.class_features,
        dropout=plan.data.feature_dropout,
        questions={str(k): v for k, v in plan.data.questions.items()},
        yesno_focus=plan.data.yesno_focus,
        seed=plan.train.seed,
        rank=rank,
    )


def class_directions(frozen: Frozen) -> Any:
    """The encoder's classifier (weight, bias)."""
    from sensorium import encoders

    declared = frozen.composition.spec.encoders["image"]
    encoder: Any = encoders.create(declared.kind, frozen.encoder, **declared.options)
    return encoder.class_directions()


def parts_table(frozen: Frozen, projector: nn.Module, llm: Llama) -> str:
    """Every part with its parameters, frozen or trained, as lines of text."""

    def count(module: nn.Module, learns: bool) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad is learns)

    declared = frozen.composition.spec.encoders["image"]
    size = f"{frozen.encoder.stat().st_size / 1e6:.1f} MB"
    rows = [
        ("encoders.image", "", "frozen", f"{declared.kind}, {size}, run by ONNX Runtime"),
        ("backbone", f"{count(llm, False):,}", "frozen", f"{llm.shape.layers} layers of width {llm.shape.dim}"),
        ("lora", f"{count(llm, True):,}", "trained", "active only in conversations that hold media"),
        ("projectors.image", f"{count(projector, True):,}", "trained", type(projector).__name__),
        ("projectors.image", f"{count(projector, False):,}", "frozen", type(projector).__name__),
    ]
    lines = [f"{'part':<18}{'parameters':>14}  state    what"]
    lines += [f"{name:<18}{size:>14}  {state:<8} {what}" for name, size, state, what in rows if size != "0"]
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
