"""A recipe of kind `speak`: an output projector from the LLM's hidden states to the units of a speech generator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sensorium.errors import UsageError
from sensorium.projectors.output import filled
from sensorium.training.values import Count, Limits, Rate, Run, Seed, Strict

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


class SpeakTrain(Limits):
    """``frame_tokens`` is a batch's size."""

    learning_rate: Rate = 2e-3
    frame_tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 1024
    aligned_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0  # at first, learn slots whose place is known (`align`)


class SpeakRecipe(Run):
    """One training of an output projector beside a composition, all of whose other parts stay frozen."""

    kind: Literal["speak"]
    generator: Literal["hibari"] = "hibari"
    projector: OutputProjectorRecipe = OutputProjectorRecipe()
    data: SpeakData
    train: SpeakTrain
