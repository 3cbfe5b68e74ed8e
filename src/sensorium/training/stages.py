"""One process of a run: parts are loaded once, then each stage trains what it names and proves what it left alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sensorium import hub
from sensorium.backbones.threads import physical_cores
from sensorium.errors import SensoriumError
from sensorium.hub.progress import say
from sensorium.projectors.spec import tokens_for
from sensorium.prompt import Tokens
from sensorium.training import checkpoint
from sensorium.training.backbone import Backbone, digest_frozen, part_of
from sensorium.training.compose_task import ComposeTask
from sensorium.training.display import Display
from sensorium.training.frozen import Frozen
from sensorium.training.launch import leave, meet, on_this_machine
from sensorium.training.llama import without_lora
from sensorium.training.load_backbone import load_backbone
from sensorium.training.logs import open_loggers
from sensorium.training.loop import train_loop
from sensorium.training.output import ended_before
from sensorium.training.overview import check_memory, overview_of
from sensorium.training.processes import StopRequest
from sensorium.training.projectors import create_projector
from sensorium.training.recipe import Recipe, StageRecipe
from sensorium.training.report import write_report
from sensorium.training.run import DONE, finished
from sensorium.training.scene_store import SceneStore
from sensorium.training.sharding import Sharded
from sensorium.training.write import write_composition

if TYPE_CHECKING:
    from sensorium.training.data.formats.batches import Features, PackedBatches
    from sensorium.training.data.stream import SampleStream


def worker(
    rank: int,
    address: str,
    plan: Recipe,
    frozen: Frozen,
    kept: Sequence[dict[str, Any]],
    stores: Sequence[Path | None],
    first: int,
    resume: bool,
) -> None:
    """Run a recipe's stages from ``first`` on; rank 0 writes.

    Args:
        rank, address: which process this is, and where the processes meet.
        plan, frozen: the recipe and its frozen parts.
        kept: for each stage, what a checkpoint and the run that resumes it have in common.
        stores: for each stage, the directory of its scenes' features, None where samples come from files.
        first: the stage to begin with; the one before it has left a checkpoint.
        resume: go on from the checkpoint of ``first``, if it has one.
    """
    world = plan.train.processes
    # said, not left to torch: with another number of threads a resumed run would not be the same bit for bit
    said = os.environ.get("OMP_NUM_THREADS", "")
    here, beside = on_this_machine(rank, world)
    torch.set_num_threads(int(said) if said.isdigit() and int(said) else max(1, physical_cores() // beside))
    device = choose_device(plan.train.device, here)
    if world > 1:
        keep_to_cores(here, beside)
    met = meet(rank, world, address)  # unless a launcher has brought the processes together
    torch.manual_seed(plan.train.seed)
    stages = plan.plan()
    llm, tokenizer = load_backbone(plan, frozen.composition, frozen.weights, frozen.fingerprints["backbone"])
    scenes = SceneStore(stores[0], stages[0].data.scenes) if stores[0] else None
    projector = create_projector(plan.projector, frozen, llm, tokenizer, scenes)
    restore(plan, stages[:first], projector, llm)
    if plan.train.compile:
        for block in llm.blocks:
            block.compile()
    shards = Sharded(llm, projector, device) if plan.train.sharding == "full" and world > 1 else None
    projector.to(device)
    llm.to(device)
    began = time.monotonic()
    taken = {stage.name: finished(plan, stage) for stage in stages[:first]}
    spoken = text_logits(llm, tokenizer)

    def write(steps: int) -> None:
        minutes, before = (sum(done[key] for done in taken.values()) for key in ("minutes", "steps"))
        if steps:  # within a stage
            minutes += (time.monotonic() - began) / 60
        with shards.gathered(plan.trains_backbone) if shards else nullcontext(projector) as whole:
            if rank == 0:
                write_composition(
                    plan, frozen, whole, llm, Path(plan.output) / "composition", data=data_facts(plan, kept),
                    run={"steps": before + steps, "minutes": round(minutes, 1), "stages": taken},
                )  # fmt: skip

    for stage in stages[first:]:
        learn(projector, llm, plan.trains(stage))
        check_memory(stage, projector, llm)
    overviews: dict[str, str] = {}
    held = "All of backbone and projector learnt"  # unless a stage holds something still
    with StopRequest() as stopping:
        for number in range(first, len(stages)):
            with stopping.waiting():
                stage = with_steps(stages[number], plan, frozen, tokenizer)
            directory = plan.directory(stage)
            directory.mkdir(parents=True, exist_ok=True)
            learn(projector, llm, plan.trains(stage))
            overviews[stage.name] = overview_of(plan, stage, frozen, projector, llm, number)
            if rank == 0:
                say(overviews[stage.name])
            with stopping.waiting():
                task = make_task(rank, stage, plan, frozen, stores[number], tokenizer, projector, llm)
            goes_on = resume and number == first and (directory / checkpoint.FILE).is_file()
            begun = checkpoint.check(directory, kept[number]) if goes_on else 0
            before = digest_frozen(llm) + digest_frozen(projector)
            with Display(stage.name, stage.train.steps, stage.train.minutes) if rank == 0 else nullcontext() as shown:
                steps = train_loop(
                    task, stage.train, directory, rank=rank, world=world, resume=goes_on, facts=kept[number],
                    stopping=stopping, report=shown, snapshot=write,
                    loggers=partial(open_loggers, stage.train.log, directory, plan.name, kept[number]),
                )  # fmt: skip
            if digest_frozen(llm) + digest_frozen(projector) != before:
                raise SensoriumError(
                    f"What stage {stage.name} holds frozen changed during it; this is a bug, please report it."
                )
            if any(not parameter.requires_grad for module in (llm, projector) for parameter in module.parameters()):
                held = f"Frozen weights unchanged (sha256 {before[:12]})"
            if rank == 0 and begun == steps:
                say(ended_before(Path(plan.output), steps))
            taken[stage.name] = {"steps": steps, "minutes": round((time.monotonic() - began) / 60, 1)}
            began = time.monotonic()
            if rank == 0:
                with hub.atomic_write(directory / DONE, "w") as file:
                    json.dump(taken[stage.name], file)
    if not plan.trains_backbone and not torch.equal(text_logits(llm, tokenizer), spoken):
        raise SensoriumError("Text without media is no longer the bare backbone's; this is a bug, please report it.")
    if rank == 0 or shards:
        write(0)
    if rank == 0:
        proofs = f"{held}, text without media bit for bit the bare backbone's."
        if plan.trains_backbone:
            proofs = f"{held}; the backbone learnt, so text without media differs."
        page = write_report(plan, overviews, proofs)
        say(f"{proofs} Trained composition: {Path(plan.output) / 'composition'}; report: {page}")
    if world > 1:
        dist.barrier()
    if met:
        leave()


def keep_to_cores(rank: int, world: int) -> None:
    """Give each process of this machine its own cores, where the system lets it.

    Beside other work the scheduler otherwise puts two of them on one core, and each step waits for the slower; that
    halves the speed (measured).
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[rank * len(cores) // world : (rank + 1) * len(cores) // world]
        if mine:
            os.sched_setaffinity(0, mine)


def choose_device(wanted: str, rank: int) -> torch.device:
    """The device of a process, by its rank on this machine: of several GPUs, each process has its own.

    Raises:
        SensoriumError: a GPU is asked for and there is none for this process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and rank >= gpus:
        raise SensoriumError(
            f"train.device is cuda, and process {rank} finds no GPU of its own ({gpus} on this machine); set "
            "train.device=cpu or fewer train.processes."
        )
    if wanted == "cpu" or rank >= gpus:
        return torch.device("cpu")
    torch.cuda.set_device(rank)  # NCCL asks for it
    return torch.device("cuda", rank)


def learn(projector: nn.Module, llm: Backbone, trains: Sequence[str]) -> None:
    """Let learn the parts of ``trains``, and nothing else."""
    for parameter in projector.parameters():
        parameter.requires_grad_("projector" in trains)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_(part_of(name) in trains)


def restore(plan: Recipe, stages: Sequence[StageRecipe], projector: nn.Module, llm: Backbone) -> None:
    """Take over what finished stages trained, the later over the earlier."""
    parts = {"projector": dict(projector.named_parameters())}
    parts |= {part: dict(llm.named_parameters()) for part in ("lora", "backbone", "tokens")}
    for stage in stages:
        for name, value in checkpoint.trained(plan.directory(stage)).items():
            part, _, rest = name.partition(".")
            with torch.no_grad():
                parts[part][rest].copy_(value)


def text_logits(llm: Backbone, tokenizer: Tokens) -> Tensor:
    """What the backbone says about a text without media: its LoRA is off then, as at inference, and new tokens are none
    of its vocabulary."""
    text = tokenizer.encode("What is the capital of France? Name a fruit, and count to three.")
    ids, length = torch.tensor([text], device=llm.device), len(text)
    mask = torch.full((length, length), -1e4, dtype=llm.dtype, device=llm.device).triu(1)[None, None]
    with torch.no_grad(), without_lora(llm):
        return llm.score(llm(llm.lookup(ids), torch.arange(length, device=llm.device)[None], mask)[0])


def data_facts(plan: Recipe, kept: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says about the data."""
    catalogue = next((facts["data.catalogue"] for facts in kept if facts.get("data.catalogue")), None)
    drawn = {"catalogue_sha256": catalogue, "scenes": plan.data.scenes} if catalogue else {}
    sets = sorted({one.path for stage in plan.plan() for one in stage.data.sets})
    return {**drawn, **({"sets": sets} if sets else {})}


def make_task(
    rank: int,
    stage: StageRecipe,
    plan: Recipe,
    frozen: Frozen,
    store: Path | None,
    tokenizer: Tokens,
    projector: nn.Module,
    llm: Backbone,
) -> ComposeTask:
    """What the loop trains in a stage: on scenes, or on samples in files."""
    if store:
        stream = make_stream(rank, stage, plan, frozen, SceneStore(store, stage.data.scenes), tokenizer)
        return ComposeTask(projector, llm, stream, stage.train.learning_rate, stage.objective)
    from sensorium.training.data.formats.task import PackedTask
    from sensorium.training.features import CachedFeatures

    features = CachedFeatures.of(frozen, stage.data.features)
    packed = packed_batches(stage, plan, frozen, tokenizer, features, rank, stage.train.processes)
    return PackedTask(projector, llm, packed, stage.train.learning_rate)


def with_steps(stage: StageRecipe, plan: Recipe, frozen: Frozen, tokenizer: Tokens) -> StageRecipe:
    """The stage with the number of its steps, where it counts epochs of its data.

    Raises:
        SensoriumError: a sample is broken, or the data do not make a single step.
    """
    if stage.train.epochs is None:
        return stage

    def unread(media: Any) -> Any:
        raise AssertionError("counting opens no medium")

    steps = packed_batches(stage, plan, frozen, tokenizer, unread, 0, 1).count()
    if not steps:
        raise SensoriumError(
            f"The data of stage {stage.name} do not fill {stage.train.rows} rows of {stage.train.row_tokens} tokens; "
            "lower train.rows."
        )
    return stage.model_copy(update={"train": stage.train.model_copy(update={"steps": steps})})


def packed_batches(
    stage: StageRecipe, plan: Recipe, frozen: Frozen, tokenizer: Tokens, features: Features, rank: int, world: int
) -> PackedBatches:
    """The batches that one of ``world`` processes makes of a stage's samples in files."""
    from sensorium.training.data.formats.batches import PackedBatches
    from sensorium.training.data.formats.encode import encode
    from sensorium.training.data.formats.readers import open_set
    from sensorium.training.data.formats.sample import Sample

    data, train = stage.data, stage.train
    count = tokens_for(plan.projector.kind, plan.projector.options, frozen.features)
    sets = [
        (
            open_set(
                one.path, one.kind, media=Path(one.media) if one.media else None, licence=one.licence,
                question=one.question,
            ),
            one.weight,
        )
        for one in data.sets
    ]  # fmt: skip

    def lay_out(sample: Sample) -> Any:
        template = frozen.composition.spec.backbone.template
        return encode(sample, tokenizer, count, template=template, limit=train.row_tokens)

    return PackedBatches(
        sets, lay_out, features, rows=train.rows, row_tokens=train.row_tokens, rank=rank, world=world,
        seed=train.seed, temperature=data.temperature, epochs=train.epochs,
    )  # fmt: skip


def make_stream(
    rank: int, stage: StageRecipe, plan: Recipe, frozen: Frozen, scenes: SceneStore, tokenizer: Tokens
) -> SampleStream:
    """This rank's batches of a stage."""
    from sensorium.training.class_features import ClassFeatures
    from sensorium.training.data.scenes import load_items
    from sensorium.training.data.stream import SampleStream

    data, train = stage.data, stage.train
    directions = frozen.class_directions() if data.class_features else None
    drawn = frozen.stores[plan.plan().index(stage)]
    assert drawn is not None
    return SampleStream(
        scenes,
        [item for item in load_items(drawn.catalogue) if item.split == "train"],
        ClassFeatures(directions[0], scenes.cells(30_000)) if directions else None,
        frozen.grid,
        tokenizer,
        tokens_for(plan.projector.kind, plan.projector.options, frozen.features),
        rows=train.rows // train.processes,
        row_tokens=train.row_tokens,
        class_share=data.class_features,
        dropout=data.feature_dropout,
        questions={str(k): v for k, v in data.questions.items()},
        yesno_focus=data.yesno_focus,
        twins=stage.objective.kind == "distill",
        seed=train.seed,
        rank=rank,
        template=frozen.composition.spec.backbone.template,
    )
