"""What a run would fail for in the end, found before anything is fetched: files that are not there, a GPU, a place."""

from __future__ import annotations

from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.install import check_target
from sensorium.training.recipe import Recipe


def check_recipe(recipe: Recipe, output: Path) -> None:
    """Raise UsageError or SensoriumError for a catalogue, a set or a GPU that is not there, or a wrong `install`."""
    from sensorium.training.data.formats.readers import open_set

    check_target(recipe.install, output)
    for stage in recipe.plan():
        _check_catalogue(stage.data.catalogue)
        for one in stage.data.sets:
            open_set(one.path, one.kind)
    if any(stage.train.device == "cuda" for stage in recipe.plan()):
        _check_gpu()


def check_clip_recipe(recipe: ClipRecipe, output: Path) -> None:
    """Raise UsageError or SensoriumError for a catalogue or pairs that cannot be read, or a wrong `install`."""
    from sensorium.training.clip_pairs import read_pairs

    check_target(recipe.install, output)
    _check_catalogue(recipe.data.catalogue)
    if recipe.data.pairs:
        read_pairs(Path(recipe.data.pairs))


def _check_catalogue(path: str | None) -> None:
    if path and not Path(path).is_file():
        raise SensoriumError(f"The catalogue {path} does not exist or is no file; correct data.catalogue.")


def _check_gpu() -> None:
    """The slow check comes last: torch takes seconds to import."""
    import torch

    if not torch.cuda.is_available():
        raise SensoriumError("train.device is cuda, and this machine has no GPU that torch can use; set it to auto.")
