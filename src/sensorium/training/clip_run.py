"""`sensorium train` with a recipe of kind `clip`: from the recipe to a two-tower composition, top to bottom."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from sensorium import hub
from sensorium.composition import FILE, MANIFEST, file_sha256
from sensorium.encoders.base import FeatureSpec, Grid
from sensorium.errors import SensoriumError, UsageError
from sensorium.training.clip_pairs import Pair, digest_of, read_pairs, scene_pairs
from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.install import install
from sensorium.training.overrides import flat, read
from sensorium.training.preflight import check_clip_recipe
from sensorium.two_tower import SIDES, TwoTower

if TYPE_CHECKING:
    from torch import nn

RECIPE = "recipe.yaml"
FILES = ("image.onnx", "image.safetensors", "text.onnx", "text.safetensors")


@dataclass(frozen=True)
class Material:
    """What a run learns from: features of pictures and texts, their pairs, the frozen parts' seams.

    Attributes:
        pictures: float16 [N, 2 * dim], pooled.
        texts: float16 [M, text dim].
        pairs, places: the pairs, and where each one's text stands among the texts.
        image, text: the encoders' seams.
        facts: digests of the data, as checkpoint and manifest hold them.
    """

    pictures: np.ndarray
    texts: np.ndarray
    pairs: list[Pair]
    places: np.ndarray
    image: FeatureSpec
    text: FeatureSpec
    facts: dict[str, Any]


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

    output = Path(resume or plan.output)
    if resume and not (output / RECIPE).is_file():
        raise UsageError(f"--resume {resume} is no output directory of a training run; it holds no {RECIPE}.")
    if not resume and (output / checkpoint.FILE).exists():
        raise UsageError(
            f"{output} holds the checkpoint of a run already; continue it with --resume {output}, or choose another "
            "place with --set output=DIR."
        )
    check_clip_recipe(plan, output)
    towers = TwoTower(plan.composition)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE).write_text(plan.dump(), encoding="utf-8")
    except OSError as error:
        raise SensoriumError(f"The output {output} cannot be written ({error.strerror}); choose another.") from None
    prepare(plan, towers)  # once, before several processes would
    arguments = (plan, str(towers.directory), output, resume is not None)
    if plan.train.processes == 1:
        worker(0, "", *arguments)
    else:
        run_ranks(worker, plan.train.processes, arguments)
    if plan.install:
        _say(f"Installed: {install(output / 'composition', plan.install)}")
    return output / "composition"


def prepare(plan: ClipRecipe, towers: TwoTower) -> Material:
    """Draw, read and encode what the recipe names; all of it is kept in the cache."""
    from sensorium.training.clip_features import encode_pictures, encode_texts, pooled_scenes

    encoder, sentences = towers.image_encoder.get(), towers.text_encoder.get()
    blocks: list[np.ndarray] = []
    pairs: list[Pair] = []
    facts: dict[str, Any] = {}
    if plan.data.scenes:
        store, facts["catalogue_sha256"] = _scenes(plan, towers, encoder.spec)
        blocks.append(pooled_scenes(store, _report("Pooling scenes")))
        pairs += scene_pairs([store[i][1] for i in range(len(store))], plan.data.captions, plan.data.seed)
    if plan.data.pairs:
        found = read_pairs(Path(plan.data.pairs))
        files = [(pair.picture, digest_of(pair.picture)) for pair in found]
        rows, good = encode_pictures(files, encoder, _report("Encoding pictures"))
        if not good.all():
            _say(f"{int((~good).sum())} of {len(good)} pictures of {plan.data.pairs} cannot be read and are left out.")
        start = sum(map(len, blocks))
        own = [
            Pair(start + at, pair.text, frozenset({f"={pair.text}"}), frozenset({f"={pair.text}"}))
            for at, pair in enumerate(found)
            if good[at]
        ]
        pairs += own * plan.data.repeat_pairs
        blocks.append(rows)
        facts["pairs"] = len(own)
    if len(pairs) < 2 * plan.train.processes:
        raise SensoriumError(
            f"The recipe's data give {len(pairs)} pairs, too few to set one against another; give more."
        )
    texts = sorted({pair.text for pair in pairs})
    place = {text: at for at, text in enumerate(texts)}
    vectors = encode_texts(texts, sentences, _report("Encoding texts"))
    pictures = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    facts |= {"scenes": plan.data.scenes, "texts": len(texts)}
    places = np.array([place[pair.text] for pair in pairs])
    return Material(pictures, vectors, pairs, places, encoder.spec, sentences.spec, facts)


def _scenes(plan: ClipRecipe, towers: TwoTower, features: FeatureSpec) -> tuple[Any, str]:
    """The store of scenes that the recipe names, built where it is not there yet; and its catalogue's digest."""
    from sensorium.training.data.catalogue import registry_catalogue
    from sensorium.training.scene_store import SceneStore, StorePlan, build

    catalogue = Path(plan.data.catalogue) if plan.data.catalogue else registry_catalogue()
    if not catalogue.is_file():
        raise SensoriumError(f"The catalogue {catalogue} does not exist or is no file; correct data.catalogue.")
    declared = towers.spec.encoders.image
    weights, _ = towers.fetch("image")
    if not isinstance(features.layout, Grid):
        raise UsageError(f"{towers.path}: the encoder {declared.kind} gives no grid; use another for pictures.")
    wanted = StorePlan(
        catalogue, plan.data.scenes, plan.data.seed, {str(k): v for k, v in plan.data.mix.items()},
        declared.kind, weights, declared.options, features.fingerprint,
    )  # fmt: skip
    return SceneStore(build(wanted, report=_report("Composing and encoding scenes")), plan.data.scenes), file_sha256(
        catalogue
    )


def worker(rank: int, address: str, plan: ClipRecipe, directory: str, output: Path, resume: bool) -> None:
    """One process of a run; rank 0 writes."""
    import torch
    import torch.distributed as dist

    from sensorium.backbones.threads import physical_cores
    from sensorium.training.clip_task import ClipTask
    from sensorium.training.contrastive import Temperature
    from sensorium.training.loop import train_loop
    from sensorium.training.processes import StopRequest

    world = plan.train.processes
    if world > 1:
        torch.set_num_threads(max(1, physical_cores() // world))
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    towers = TwoTower(directory)
    material = prepare(plan, towers)
    torch.manual_seed(plan.train.seed)
    image, text = make_heads(plan, towers, material)
    temperature = Temperature(plan.loss)
    task = ClipTask(
        image, text, temperature, material.pictures, material.texts, material.pairs, material.places, plan.train,
        rank, world,
    )  # fmt: skip
    frozen = {"encoders.image": material.image.fingerprint, "encoders.text": material.text.fingerprint}
    kept = dict(flat(plan.model_dump(mode="json", include={"loss", "heads", "data"})))
    kept |= {**material.facts, **frozen}
    kept |= {"train.batch": plan.train.batch, "train.seed": plan.train.seed, "train.dropout": plan.train.dropout}
    if rank == 0:
        _say(
            f"Training {plan.name}: {plan.train.steps} steps of {task.size} of {len(material.pairs)} pairs; "
            f"{_count(image)} parameters over pictures, {_count(text)} over texts; both towers are frozen."
        )

    def report(p: Any) -> None:
        _say(
            f"step {p.step:5d}/{p.steps}  loss {p.loss:.4f}  scale {p.parts['scale']:.1f}  "
            f"{p.tokens_per_s:.0f} pairs/s  {p.minutes:.1f} min"
        )

    def write(step: int) -> None:
        scale = float(temperature.logit_scale.detach().exp())
        write_two_tower(plan, towers, material, image, text, output / "composition", scale, frozen, step)

    with StopRequest() as stopping:
        limits: Any = plan.train  # has what the loop reads of any recipe
        steps = train_loop(
            task, limits, output, rank=rank, world=world, resume=resume, facts=kept, stopping=stopping, report=report,
            snapshot=write,
        )  # fmt: skip
    if rank == 0:
        write(steps)
        _say(f"Trained two-tower model: {output / 'composition'}")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def make_heads(plan: ClipRecipe, towers: TwoTower, material: Material) -> tuple[Any, Any]:
    """Both heads at their start."""
    import torch

    from sensorium.training.clip_heads import ImageHead, TextHead

    dims, shape = (material.image.dim, material.text.dim), plan.heads
    if shape.start == "random":
        return ImageHead(dims[0], shape.dim, shape.image), TextHead(dims[1], shape.dim, shape.text)
    encoder: Any = towers.image_encoder.get()
    if not hasattr(encoder, "class_directions"):
        raise UsageError(f"The encoder {towers.spec.encoders.image.kind} has no classifier; set heads.start=random.")
    if shape.dim != dims[1]:
        raise UsageError(f"heads.start: concepts begins in the text tower's own space; set heads.dim={dims[1]}.")
    from sensorium.encoders.imagenet import class_names

    some = _unit(np.asarray(material.texts[:: max(1, len(material.texts) // 5000)], np.float32))
    common = some.mean(axis=0)
    meanings = _unit(towers.text_encoder.get().encode_text([f"a photo of a {name}" for name in class_names()])) - common
    directions = tuple(torch.from_numpy(np.array(value, np.float32)) for value in encoder.class_directions())
    image = ImageHead(dims[0], shape.dim, shape.image, (directions[0], directions[1]), torch.from_numpy(meanings))
    return image, TextHead(dims[1], shape.dim, shape.text, torch.from_numpy(common))


def write_two_tower(
    plan: ClipRecipe,
    towers: TwoTower,
    material: Material,
    image: nn.Module,
    text: nn.Module,
    directory: Path,
    scale: float,
    frozen: dict[str, str],
    steps: int,
) -> None:
    """Write ``composition.yaml``, both heads with their ONNX twins, and the manifest."""
    from sensorium.training.export import export_projector

    directory.mkdir(parents=True, exist_ok=True)
    layout = material.image.layout
    assert isinstance(layout, Grid)
    export_projector(image, layout.cells, material.image.dim, directory, "image")
    export_projector(text, 1, material.text.dim, directory, "text")
    spec = towers.spec.model_dump(mode="json", exclude_defaults=True)
    spec["name"] = plan.name
    for side in SIDES:
        spec["encoders"][side]["part"]["source"] = towers.part(side).source  # a path of one's own, made absolute
    tokenizer = towers.spec.encoders.text.tokenizer
    if tokenizer and not towers.part("text").sha256:
        spec["encoders"]["text"]["tokenizer"] = str((towers.directory / tokenizer).absolute())
    spec["heads"] = {side: {"weights": f"{side}.safetensors", "onnx": f"{side}.onnx"} for side in SIDES}
    spec["temperature"] = round(1 / scale, 6)
    manifest = {
        "schema": 1,
        "recipe": plan.model_dump(mode="json"),
        "data": material.facts,
        "run": {"steps": steps, "scale": round(scale, 4)},
        "frozen": frozen,
        "files": {name: file_sha256(directory / name) for name in FILES},
    }
    with hub.atomic_write(directory / FILE, "w") as file:
        file.write(yaml.safe_dump(spec, sort_keys=False))
    with hub.atomic_write(directory / MANIFEST, "w") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def _report(label: str) -> Any:
    """A line on standard error at each tenth of a long job."""
    state = {"tenth": -1}

    def report(done: int, total: int) -> None:
        tenth = done * 10 // max(total, 1)
        if -1 < state["tenth"] < tenth and total >= 1000:  # the first call says what was there already
            _say(f"{label}: {done} of {total}")
        state["tenth"] = tenth

    return report


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
