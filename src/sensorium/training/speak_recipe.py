"""A recipe of kind `speak`: an output projector from the LLM's hidden states to the units of a speech generator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from sensorium.errors import UsageError
from sensorium.projectors.output import filled
from sensorium.training.values import Count, Name, Rate, Seed, Strict, Text

Share = Annotated[float, Field(ge=0, lt=1)]
Source = Literal["phrases", "wordnet", "numbers", "answers"]


class OutputProjectorRecipe(Strict):
    """Which output projector; options left out have the defaults of `projectors.output`."""

    kind: Literal["ctc"] = "ctc"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> OutputProjectorRecipe:
        try:
            filled(self.kind, self.options)
        except UsageError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self


class SpeakSource(Strict):
    """So many texts of a source (`training.speak_texts`), drawn with this weight."""

    texts: Count
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class SpeakData(Strict):
    """Texts, by source; ``state_dropout`` is the share of answers that are learnt from without their hidden states."""

    sources: Annotated[dict[Source, SpeakSource], Field(min_length=1)]
    state_dropout: Annotated[float, Field(ge=0, le=1)] = 0.3
    held_out: Count = 200  # texts of each of the two held-out sources, fortunes and answers about other nouns
    seed: Seed = 0


class SpeakTrain(Strict):
    """How long and how fast; the names are those that `loop.train_loop` reads. ``frame_tokens`` is a batch's size."""

    steps: Count
    minutes: Annotated[float, Field(gt=0)] | None = None
    frame_tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 1024
    learning_rate: Rate = 2e-3
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 50
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    weight_decay: Share = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    aligned_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0  # at first, learn slots whose place is known (`align`)
    seed: Seed = 0
    checkpoint_every: Count = 250
    log_every: Count = 20


class SpeakRecipe(Strict):
    """One training of an output projector beside a composition, all of whose other parts stay frozen."""

    kind: Literal["speak"]
    name: Name
    composition: Text
    output: Text
    generator: Literal["hibari"] = "hibari"
    projector: OutputProjectorRecipe = OutputProjectorRecipe()
    data: SpeakData
    train: SpeakTrain

    def dump(self) -> str:
        """The resolved recipe as YAML, as it is saved with the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
