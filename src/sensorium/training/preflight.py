"""What a run would fail for in the end, found before anything is loaded: files that are not there, a GPU, a place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.composition import Composition
from sensorium.errors import SensoriumError, UsageError
from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.install import check_target
from sensorium.training.recipe import Recipe, SetRecipe, StageRecipe

if TYPE_CHECKING:
    from sensorium.training.frozen import Frozen

FIRST = 20  # records of a data set that are looked at: where all of them are wrong, the recipe is
Place = Callable[..., str]
"""Keys of a recipe -> where their value was given (`overrides.place`)."""


def check_recipe(recipe: Recipe, output: Path, place: Place | None = None) -> None:
    """Look for what a recipe names.

    Args:
        recipe, output: the recipe, and where its run writes.
        place: tells where a value was given; without it no message says so.

    Raises:
        UsageError: a composition, catalogue, data set or directory that it names does not exist, or `install` is wrong.
        SensoriumError: a data set holds no sample of its kind, there is no GPU, or `install` cannot be written.
    """
    check_target(recipe.install, output)
    with _placed(place, "composition"):
        Composition.find(recipe.composition)
    for number, stage in enumerate(recipe.plan()):
        keys = ("stages", number, "data") if recipe.stages else ("data",)
        with _placed(place, *keys, "catalogue"):
            _check_catalogue(stage.data.catalogue)
        for at, one in enumerate(stage.data.sets):
            with _placed(place, *keys, "sets", at):
                _check_set(one, f"data.sets.{at}.media")
    if any(stage.train.device == "cuda" for stage in recipe.plan()):
        _check_gpu()


def check_clip_recipe(recipe: ClipRecipe, place: Place | None = None) -> None:
    """The same for a recipe of kind `clip`, but for `install`; its pairs are all read."""
    from sensorium.training.clip_pairs import read_pairs

    with _placed(place, "data", "catalogue"):
        _check_catalogue(recipe.data.catalogue)
    if recipe.data.pairs:
        with _placed(place, "data", "pairs"):
            read_pairs(Path(recipe.data.pairs))


def check_rows(recipe: Recipe, frozen: Frozen, place: Place | None = None) -> None:
    """Raise SensoriumError where `row_tokens` is too small for any sample, before weights and pictures are loaded."""
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.projectors.spec import tokens_for
    from sensorium.training.load_backbone import open_source
    from sensorium.training.rows import question_branch

    count = tokens_for(recipe.projector.kind, recipe.projector.options, frozen.features)
    declared = frozen.composition.spec.backbone
    with open_source(frozen.weights, declared.format) as source:
        tokenizer = Tokenizer.from_gguf(source)
    layout, branch = question_branch("?", "!", tokenizer, count, template=declared.template)
    for number, stage in enumerate(recipe.plan()):
        with _placed(place, *(("stages", number, "train") if recipe.stages else ("train",)), "row_tokens"):
            _check_row(stage, layout.length + len(branch.ids), count, tokenizer, declared.template)


def _check_row(stage: StageRecipe, least: int, count: int, tokenizer: Any, template: str) -> None:
    from sensorium.training.data.formats.encode import SampleError, encode
    from sensorium.training.data.formats.readers import open_set
    from sensorium.training.data.formats.sample import Sample

    length = stage.train.row_tokens
    if stage.data.scenes and least > length:
        raise SensoriumError(
            f"A picture of {count} tokens and the shortest question about it take {least} tokens, and rows have "
            f"{length}; raise train.row_tokens."
        )
    for one in stage.data.sets:
        longer: SampleError | None = None
        for sample in islice(open_set(one.path, one.kind, media=_media(one), question=one.question).samples(), FIRST):
            try:
                if isinstance(sample, Sample):
                    encode(sample, tokenizer, count, template=template, limit=length)
                longer = None
                break
            except SampleError as error:
                longer = error
        if longer is not None and longer.kind == "too long":
            raise SensoriumError(f"{str(longer).partition(';')[0]}; raise train.row_tokens.")


def _check_set(one: SetRecipe, key: str) -> None:
    from sensorium.training.data.formats.readers import open_set
    from sensorium.training.data.formats.sample import Broken

    if one.media and not Path(one.media).is_dir():
        raise UsageError(f"{key} is {one.media!r}, which is no directory; give the one that names of media count from.")
    first = list(islice(open_set(one.path, one.kind, media=_media(one), question=one.question).samples(), FIRST))
    if not first:
        raise SensoriumError(f"{one.path} holds no samples; name another data set.")
    broken = [sample for sample in first if isinstance(sample, Broken)]
    if len(broken) == len(first):
        kind = f" of kind {one.kind}" if one.kind else ""
        raise SensoriumError(f"{one.path} holds no sample{kind} in its first records: {broken[0].reason}")


def _media(one: SetRecipe) -> Path | None:
    return Path(one.media) if one.media else None


def _check_catalogue(path: str | None) -> None:
    if path and not Path(path).is_file():
        raise UsageError(f"The catalogue {path} does not exist or is no file; correct data.catalogue.")


def _check_gpu() -> None:
    """The slow check comes last: torch takes seconds to import."""
    import torch

    if not torch.cuda.is_available():
        raise SensoriumError("train.device is cuda, and this machine has no GPU that torch can use; set it to auto.")


@contextlib.contextmanager
def _placed(place: Place | None, *keys: str | int) -> Iterator[None]:
    """Inside, a complaint also says where the value of ``keys`` was given."""
    try:
        yield
    except SensoriumError as error:
        if place is None:
            raise
        kind = UsageError if isinstance(error, UsageError) else SensoriumError
        raise kind(f"{str(error).removesuffix('.')} ({place(*keys)}).") from None
