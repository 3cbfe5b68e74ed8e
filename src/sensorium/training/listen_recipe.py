"""A recipe of kind `listen`: an input projector from a frozen speech encoder to the embeddings of a frozen LLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sensorium.config import KeyFault
from sensorium.projectors.spec import find
from sensorium.training.recipe import check_options
from sensorium.training.values import Count, Limits, Rate, Run, Seed, Share, Strict

RANDOM = "random"


class ListenProjectorRecipe(Strict):
    """Which projector; options left out have the defaults of `projectors.spec`.

    ``start`` is "random", or a composition (its name or folder) that listens to the same encoder with the same LLM:
    training goes on from its projector.
    """

    kind: Literal["stack"] = "stack"
    start: Annotated[str, Field(min_length=1)] = RANDOM
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> ListenProjectorRecipe:
        if "words" in self.options:
            raise KeyFault("there are as many words as training says; leave it out", "options", "words")
        check_options(self.kind, self.options)
        return self


Shards = Annotated[Count, Field(strict=True)]  # true is no number here, either


class ListenData(Strict):
    """Spoken texts, by shards of 400 (`training.listen_store`), and the LLM's answers to some of them."""

    shards: Annotated[dict[Literal["broad", "words", "names", "people"], Shards], Field(min_length=1)]  # by mixture
    answers: Count = 6000  # texts of the shards that get an answer, the first ones
    answer_tokens: Annotated[int, Field(ge=1, le=256)] = 16
    repeat: Share = 0.3  # of texts that the LLM is also asked to repeat
    seed: Seed = 0


class ListenTrain(Limits):
    """A stage. ``positions`` is a batch's size."""

    learning_rate: Rate = 1e-3
    positions: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    feature_dropout: Share = 0.0  # of feature channels, for each utterance anew
    sounds: Annotated[float, Field(ge=0)] = 0.0  # weight of telling phonemes beside words
    others: Count | None = None  # tokens that what was said is told from, drawn for each batch; null for all
    align: Annotated[float, Field(ge=0)] = 0.0  # weight of the alignment beside distillation
    temperature: Annotated[float, Field(gt=0)] = 1.0
    end_of_turn: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_every: Count = 500


ELSEWHERE = {"align": ("align", "temperature", "end_of_turn"), "distil": ("sounds",)}
"""Keys that are the other stage's."""


class ListenRecipe(Run):
    """One training of a speech projector beside a composition, all of whose other parts stay frozen."""

    kind: Literal["listen"]
    encoder: Literal["whisper-tiny.en"] = "whisper-tiny.en"
    projector: ListenProjectorRecipe = ListenProjectorRecipe()
    data: ListenData
    align: ListenTrain
    distil: ListenTrain

    @model_validator(mode="after")
    def _consistent(self) -> ListenRecipe:
        for stage, keys in ELSEWHERE.items():
            for key in keys:
                if getattr(getattr(self, stage), key) != ListenTrain.model_fields[key].default:
                    raise KeyFault(f"the stage {stage} does nothing with it; leave it out", stage, key)
        if self.align.sounds and not find(self.projector.kind).filled(self.projector.options)["depth"]:
            reason = "phonemes are told from what layers hear; give projector.options.depth 1 or align.sounds 0"
            raise KeyFault(reason, "align", "sounds")
        return self
