"""What recipes of every kind are made of: the strict mapping, and the ranges of common values."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f]*$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Strict(BaseModel):
    """A mapping of known keys; numbers are finite, and true and false are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read `steps: true` as one step."""
        if isinstance(value, bool):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if bool not in kinds and {int, float} & kinds:
                raise PydanticCustomError("int_type" if int in kinds else "float_type", "true and false are no numbers")
        return value


class Limits(Strict):
    """How long and how fast a projector of speech learns; the names are those that `loop.train_loop` reads."""

    steps: Count
    minutes: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Rate
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 50
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    weight_decay: Share = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Seed = 0
    checkpoint_every: Count = 250
    log_every: Count = 20


class Run(Strict):
    """What a recipe of any kind but that of pictures says first."""

    name: Name
    composition: Text
    output: Text
    install: Text | None = None  # where the finished composition is copied to (`training.install`)

    def dump(self) -> str:
        """The resolved recipe as YAML, as it is saved with the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation allows: int and None of ``Annotated[int, ...] | None``."""
    inside = get_args(annotation)
    if not inside:
        return {annotation}
    inside = inside[:1] if get_origin(annotation) is Annotated else inside
    return {kind for one in inside for kind in _kinds(one)} if get_origin(annotation) in _UNIONS else set()


_UNIONS = (Union, UnionType, Annotated)


def once(given: tuple[Any, ...] | None, what: str) -> Any:
    """For validators: the items, when each of them stands there once."""
    twice = [item for number, item in enumerate(given or ()) if item in (given or ())[:number]]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} stands there twice; name each once")
    return given
