"""A recipe of kind `listen`: an input projector from a frozen speech encoder to the embeddings of a frozen LLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sensorium.errors import UsageError
from sensorium.projectors.spec import find

Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ListenProjectorRecipe(_Strict):
    """Which projector; options left out have the defaults of `projectors.spec`."""

    kind: Literal["stack"] = "stack"
    options: dict[str, Any] = {}
    words: bool = True  # the output is a mean of the embeddings of all tokens that were said in training

    @model_validator(mode="after")
    def _fits(self) -> ListenProjectorRecipe:
        known = find(self.kind)
        try:
            if unknown := sorted(set(self.options) - set(known.options)):
                raise UsageError(
                    f"projector option {unknown[0]!r} is unknown; {self.kind} has {', '.join(known.options)}."
                )
            known.filled(self.options)
        except UsageError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self


class ListenData(_Strict):
    """Spoken texts, by shards of 400 (`training.listen_store`), and the LLM's answers to some of them."""

    shards: Annotated[dict[Literal["broad", "words"], Count], Field(min_length=1)]  # by mixture of texts and voices
    answers: Count = 6000  # texts of the shards that get an answer, the first ones
    answer_tokens: Annotated[int, Field(ge=1, le=256)] = 16
    repeat: Share = 0.3  # of texts that the LLM is also asked to repeat
    seed: Seed = 0


class ListenTrain(_Strict):
    """How long and how fast; the names are those that `loop.train_loop` reads. ``positions`` is a batch's size."""

    steps: Count
    minutes: Annotated[float, Field(gt=0)] | None = None
    positions: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    learning_rate: Rate = 1e-3
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 50
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    weight_decay: Share = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    feature_dropout: Share = 0.0  # of feature channels, for each utterance anew
    pull: Annotated[float, Field(ge=0)] = 0.02  # of the distance to the rows of the table, beside CTC
    others: Count | None = None  # tokens that what was said is told from, drawn for each batch; null for all
    align: Annotated[float, Field(ge=0)] = 0.0  # weight of the alignment beside distillation
    temperature: Annotated[float, Field(gt=0)] = 1.0
    end_of_turn: Annotated[float, Field(gt=0)] = 1.0
    seed: Seed = 0
    checkpoint_every: Count = 500
    log_every: Count = 20


class ListenRecipe(_Strict):
    """One training of a speech projector beside a composition, all of whose other parts stay frozen."""

    kind: Literal["listen"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    composition: Text
    output: Text
    encoder: Literal["whisper-tiny.en"] = "whisper-tiny.en"
    projector: ListenProjectorRecipe = ListenProjectorRecipe()
    data: ListenData
    align: ListenTrain
    distil: ListenTrain

    def dump(self) -> str:
        """The resolved recipe as YAML, as it is saved with the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
