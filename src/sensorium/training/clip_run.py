"""`sensorium train` with a recipe of kind `clip`: from the recipe to a two-tower composition, top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.errors import SensoriumError, UsageError
from sensorium.hub.progress import say
from sensorium.training import towers as trainable
from sensorium.training.clip_material import Material, gather
from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.failures import in_a_sentence
from sensorium.training.output import ended_before, running
from sensorium.training.overrides import flat, place, read
from sensorium.training.preflight import check_clip_recipe
from sensorium.two_tower import SIDES, Side, TwoTower

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec
    from sensorium.training.clip_sides import Source


def read_recipe(recipe: Path, overrides: Sequence[str] = ()) -> ClipRecipe:
    """Read and validate a recipe of kind `clip`; raises UsageError with the line and the reason."""
    return read(recipe, ClipRecipe, overrides)


def train_clip(recipe: Path | ClipRecipe, overrides: Sequence[str] = (), resume: Path | None = None) -> Path:
    """Run a recipe and return the directory of the trained two-tower composition.

    Args:
        recipe: the YAML file, or a recipe that was read already.
        overrides: ``key=value`` changes of the file.
        resume: the output directory of an interrupted run of the same recipe.

    Raises:
        UsageError: the recipe or the call is wrong.
        SensoriumError: a part, a picture, a checkpoint or the machine is at fault.
        KeyboardInterrupt: the run was interrupted; a checkpoint was written if a step had been taken.
    """
    plan = recipe if isinstance(recipe, ClipRecipe) else read_recipe(recipe, overrides)

    from sensorium.training import checkpoint
    from sensorium.training.processes import run_ranks

    file = recipe if isinstance(recipe, Path) else None
    check_clip_recipe(plan, partial(place, file, overrides) if file else None)
    base = TwoTower(plan.composition)
    for side in plan.unfreeze:
        trainable.check(getattr(base.spec.encoders, side).kind, base.where("encoders", side, "kind"))
    with running(plan, file, overrides, resume, [checkpoint.FILE]) as output:
        gather(plan, base, say)  # once, before several processes would
        arguments = (plan, str(base.directory), output, resume is not None)
        if plan.train.processes == 1:
            worker(0, "", *arguments)
        else:
            run_ranks(worker, plan.train.processes, arguments)
    return output / "composition"


def worker(rank: int, address: str, plan: ClipRecipe, directory: str, output: Path, resume: bool) -> None:
    """One process of a run; rank 0 writes."""
    import torch
    import torch.distributed as dist

    from sensorium.backbones.threads import physical_cores
    from sensorium.training import checkpoint
    from sensorium.training.clip_overview import overview_of
    from sensorium.training.clip_task import ClipTask
    from sensorium.training.clip_write import write_two_tower
    from sensorium.training.contrastive import Temperature
    from sensorium.training.loop import train_loop
    from sensorium.training.processes import StopRequest

    world = plan.train.processes
    if world > 1:
        torch.set_num_threads(max(1, physical_cores() // world))
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    base = TwoTower(directory)
    material = gather(plan, base, say if rank == 0 else lambda _: None)
    torch.manual_seed(plan.train.seed)
    heads = make_heads(plan, base, material)
    sides = {side: make_side(side, plan, base, material) for side in SIDES}
    towers: dict[Side, Any] = {side: source.tower for side, source in sides.items() if source.tower is not None}
    still = {side: trainable.held(tower) for side, tower in towers.items()}
    temperature = Temperature(plan.loss)
    task = ClipTask(
        heads["image"], heads["text"], temperature, sides["image"], sides["text"], material.pairs, material.places,
        plan.train, rank, world,
    )  # fmt: skip
    features: dict[Side, FeatureSpec] = {"image": material.image, "text": material.text}
    kept = dict(flat(plan.model_dump(mode="json", include={"loss", "heads", "data"})))
    kept |= {**material.facts, **{f"encoders.{side}": spec.fingerprint for side, spec in features.items()}}
    kept |= {"train.batch": plan.train.batch, "train.seed": plan.train.seed, "train.dropout": plan.train.dropout}
    kept |= {"unfreeze": list(plan.unfreeze)} if plan.unfreeze else {}
    if rank == 0:
        say(f"Training {plan.name}:")
        say(overview_of(plan, base, heads, towers, len(material.pairs), task.size))

    def report(p: Any) -> None:
        say(
            f"step {p.step:5d}/{p.steps}  loss {p.loss:.4f}  scale {p.parts['scale']:.1f}  "
            f"{p.tokens_per_s:.0f} pairs/s  {p.minutes:.1f} min"
        )

    def write(step: int) -> None:
        scale = float(temperature.logit_scale.detach().exp())
        run = {"steps": step, "scale": round(scale, 4)}
        write_two_tower(
            output / "composition", plan, base, features, heads, towers, scale, data=material.facts, run=run
        )

    begun = checkpoint.check(output, kept) if resume else 0
    with StopRequest() as stopping, in_a_sentence(output):
        limits: Any = plan.train  # has what the loop reads of any recipe
        steps = train_loop(
            task, limits, output, rank=rank, world=world, resume=resume, facts=kept, stopping=stopping, report=report,
            snapshot=write,
        )  # fmt: skip
    if any(trainable.held(tower) != still[side] for side, tower in towers.items()):
        raise SensoriumError("What a tower holds frozen changed while it learnt; this is a bug, please report it.")
    if rank == 0:
        if begun == steps:
            say(ended_before(output, steps))
        write(steps)
        say(f"Trained two-tower model: {output / 'composition'}")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def make_side(side: Side, plan: ClipRecipe, base: TwoTower, material: Material) -> Source:
    """Kept features of a frozen tower, or the tower itself with what it sees."""
    from sensorium.training.clip_sides import Kept, Learning, Tokens

    kept = material.pictures if side == "image" else material.vectors
    if kept is not None:
        return Kept(kept)
    tower = trainable.load(getattr(base.spec.encoders, side).kind, base.fetch(side)[0])
    if side == "text":
        sentences: Any = base.text_encoder.get()
        return Learning(tower, Tokens(sentences.tokenize(material.texts)))
    encoder: Any = base.image_encoder.get()
    return Learning(tower, material.pixels(encoder.prepare))


def make_heads(plan: ClipRecipe, base: TwoTower, material: Material) -> dict[Side, Any]:
    """Both heads at their start, which is the same whether towers learn or not."""
    import torch

    from sensorium.training.clip_heads import ImageHead, TextHead

    dims, shape = (material.image.dim, material.text.dim), plan.heads
    if shape.start == "random":
        image = ImageHead(dims[0], shape.dim, shape.image)
        return {"image": image, "text": TextHead(dims[1], shape.dim, shape.text)}
    encoder: Any = base.image_encoder.get()
    if not hasattr(encoder, "class_directions"):
        raise UsageError(f"The encoder {base.spec.encoders.image.kind} has no classifier; set heads.start=random.")
    if shape.dim != dims[1]:
        raise UsageError(f"heads.start: concepts begins in the text tower's own space; set heads.dim={dims[1]}.")
    from sensorium.encoders.imagenet import class_names
    from sensorium.training.clip_features import encode_texts

    sentences, step = base.text_encoder.get(), max(1, len(material.texts) // 5000)
    # of the published tower, whether it learns or not
    kept = material.vectors
    sample = encode_texts(material.texts[::step], sentences) if kept is None else kept[::step]
    common = _unit(np.asarray(sample, np.float32)).mean(axis=0)
    meanings = _unit(sentences.encode_text([f"a photo of a {name}" for name in class_names()])) - common
    directions = tuple(torch.from_numpy(np.array(value, np.float32)) for value in encoder.class_directions())
    image = ImageHead(dims[0], shape.dim, shape.image, (directions[0], directions[1]), torch.from_numpy(meanings))
    return {"image": image, "text": TextHead(dims[1], shape.dim, shape.text, torch.from_numpy(common))}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
