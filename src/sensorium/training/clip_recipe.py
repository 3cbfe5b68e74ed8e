"""A recipe of kind `clip`: which heads are trained between two towers, on which pairs, how long, and whether a tower
learns with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sensorium.training.values import Count, Rate, Run, Seed, Strict, Text
from sensorium.two_tower import Side

SceneKind = Literal["single", "several", "count", "box", "photo", "empty"]
Share = Annotated[float, Field(ge=0, lt=1)]


class HeadRecipe(Strict):
    """One head: ``depth`` hidden layers of ``hidden`` before the last linear one; 0 is a linear head."""

    depth: Annotated[int, Field(ge=0, le=4)] = 0
    hidden: Annotated[int, Field(ge=8, le=8192)] = 768


class HeadsRecipe(Strict):
    """Both heads.

    ``start: concepts`` begins as the classes of the image encoder's own classifier, each placed at what the text tower
    makes of its name (ConSE, Norouzi et al. 2013, arXiv 1312.5650); ``random`` begins with nothing.
    """

    dim: Annotated[int, Field(ge=8, le=4096)] = 384
    image: HeadRecipe = HeadRecipe(depth=1)
    text: HeadRecipe = HeadRecipe()
    start: Literal["concepts", "random"] = "random"


class ClipData(Strict):
    """Pairs of pictures and texts.

    Scenes of named pictures come from the feature store that other recipes fill too: with the same catalogue, seed and
    mix nothing is computed again. ``pairs`` is a JSONL file or a folder of pictures with texts (see
    `training.clip_pairs`).
    """

    catalogue: Text | None = None
    scenes: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Seed = 0
    mix: dict[SceneKind, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    captions: Annotated[int, Field(ge=1, le=16)] = 2
    pairs: Text | None = None
    repeat_pairs: Annotated[int, Field(ge=1, le=1000)] = 1

    @field_validator("mix")
    @classmethod
    def _drawable(cls, mix: dict[SceneKind, float]) -> dict[SceneKind, float]:
        if mix and not sum(mix.values()) > 0:
            raise ValueError("all weights are zero, so nothing could be drawn; raise one")
        return mix

    @model_validator(mode="after")
    def _something(self) -> ClipData:
        if not self.scenes and not self.pairs:
            raise ValueError("it names neither scenes nor pairs; give one of them")
        return self


class ClipRates(Strict):
    """Peak learning rates: of the heads, and of the towers that `unfreeze` names. One number is that of the heads."""

    heads: Rate = 1e-3
    towers: Rate = 2e-5

    @model_validator(mode="before")
    @classmethod
    def _of_heads(cls, given: Any) -> Any:
        return given if isinstance(given, dict | ClipRates) else {"heads": given}


class ClipTrain(Strict):
    """How long and how fast; the names are those that `loop.train_loop` reads."""

    steps: Count
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch: Annotated[int, Field(ge=2, le=65536)] = 512
    chunk: Count | None = None
    learning_rate: ClipRates = ClipRates()
    concept_rate: Rate = 2e-4
    dropout: Share = 0.0
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 20
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # `training.loop.schedule`
    weight_decay: Share = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    seed: Seed = 0
    checkpoint_every: Count = 500
    log_every: Count = 50

    @model_validator(mode="after")
    def _divides(self) -> ClipTrain:
        if self.batch % self.processes or self.batch // self.processes < 2:
            raise ValueError(
                f"batch ({self.batch}) must be a multiple of processes ({self.processes}), with 2 pairs for each"
            )
        return self


class ClipRecipe(Run):
    """One training of heads. ``composition`` declares the two encoders, which stay frozen but for those that
    ``unfreeze`` names."""

    kind: Literal["clip"]
    loss: Literal["clip", "siglip"] = "clip"
    heads: HeadsRecipe = HeadsRecipe()
    unfreeze: tuple[Side, ...] = ()
    data: ClipData
    train: ClipTrain

    @field_validator("unfreeze")
    @classmethod
    def _once(cls, sides: tuple[Side, ...]) -> tuple[Side, ...]:
        if len(set(sides)) < len(sides):
            raise ValueError("it names a tower twice; name each once")
        return tuple(sorted(sides))
