"""A training recipe: one YAML file, validated before anything is loaded, any value changed by ``--set key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sensorium import config
from sensorium.errors import UsageError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
SceneKind = Literal["single", "several", "count", "box", "photo", "empty"]
Task = Literal["yesno", "describe", "what", "which", "count", "colour", "side"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProjectorRecipe(_Strict):
    """Which projector is trained and where it starts from."""

    kind: Literal["concept", "mlp"]
    options: dict[str, Any] = {}
    start: Literal["concepts", "random"] = "random"

    @model_validator(mode="after")
    def _fits(self) -> ProjectorRecipe:
        if self.start == "concepts" and self.kind != "concept":
            raise ValueError("only a projector of kind concept can start from concepts; use start: random")
        return self


class LoraRecipe(_Strict):
    """Low-rank training of every linear layer of the backbone, active only with media."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]


class DataRecipe(_Strict):
    """Composite scenes and what is asked about them."""

    scenes: Positive
    seed: int = 0
    mix: dict[SceneKind, Annotated[float, Field(ge=0)]] = {}
    class_features: Share = 0.0
    questions: dict[Task, Annotated[float, Field(ge=0)]] = {}
    yesno_focus: Annotated[float, Field(gt=0, le=100)] = 1.0


class LearningRate(_Strict):
    """Peak learning rate per trained part; ``concepts`` are the matrices that start from the frozen parts."""

    projector: Rate
    concepts: Rate = 3e-4
    lora: Rate = 5e-4


class TrainRecipe(_Strict):
    """How long and how fast."""

    steps: Positive
    minutes: Annotated[float, Field(gt=0)] | None = None
    rows: Positive = 10
    row_tokens: Annotated[int, Field(ge=32, le=8192)] = 160
    learning_rate: LearningRate
    warmup: Annotated[int, Field(ge=0)] = 40
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    compile: bool = True
    seed: int = 0
    checkpoint_every: Positive = 250

    @model_validator(mode="after")
    def _divides(self) -> TrainRecipe:
        if self.rows % self.processes:
            raise ValueError(f"rows ({self.rows}) must be a multiple of processes ({self.processes})")
        return self


class Recipe(_Strict):
    """One training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    composition: str
    output: str
    projector: ProjectorRecipe
    lora: LoraRecipe | None = None
    data: DataRecipe
    train: TrainRecipe

    def dump(self) -> str:
        """The resolved recipe as YAML, as it is saved with the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.subkey=value`` texts, the value written as YAML; the key must stand in the recipe's schema.

    Raises:
        UsageError: the file, a key or a value is wrong; one sentence with the line where there is one.
    """
    data, lines = config.read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {override!r} is no key=value; write for example --set train.steps=100.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {override!r}: the value is no YAML; quote it or write a number.") from None
        *parents, last = key.strip().split(".")
        at: Any = data
        for name in parents:
            at = at.setdefault(name, {}) if isinstance(at, dict) else None
            if not isinstance(at, dict):
                raise UsageError(f"--set {override!r}: {name!r} holds no keys; see the recipe for what it has.")
        at[last] = value
    return config.validate(data, Recipe, path, lines)
