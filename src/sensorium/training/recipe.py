"""A training recipe: one YAML file, validated before anything is loaded, any value changed by ``--set key=value``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from sensorium.composition import TokenNames
from sensorium.config import KeyFault
from sensorium.errors import UsageError
from sensorium.projectors.spec import KINDS, LARGEST
from sensorium.training.overrides import flat, read
from sensorium.training.spread import INSTEAD, spread
from sensorium.training.values import Count, Name, Rate, Seed, Strict, Text, once

Width = Annotated[int, Field(ge=1, le=65536)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
SceneKind = Literal["single", "several", "count", "box", "photo", "empty"]
Task = Literal["yesno", "describe", "what", "which", "count", "colour", "side"]
Trained = Literal["projector", "lora", "backbone", "tokens"]
PARTS = get_args(Trained)
RESERVED = "composition"


class ProjectorRecipe(Strict):
    """Which projector is trained and where it starts from."""

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    start: Literal["concepts", "random"] = "random"
    words: bool = False  # also directions of the words that scenes show (`training.word_directions`)

    @model_validator(mode="after")
    def _fits(self) -> ProjectorRecipe:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind[:40]!r} is unknown; known kinds: {', '.join(sorted(KINDS))}")
        if self.start != "random" and self.start not in KINDS[self.kind].starts:
            able = " or ".join(name for name, kind in KINDS.items() if self.start in kind.starts)
            raise ValueError(f"only a projector of kind {able} can start from {self.start}; use start: random")
        if self.words and self.start != "concepts":
            raise ValueError("words are added to the encoder's concepts; use start: concepts with words: true")
        check_options(self.kind, self.options)
        return self


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """For validators: raises ValueError for an option that a projector of this kind has not, or cannot have so."""
    known = KINDS[kind].options
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"a projector of kind {kind} has no option {name!r}; its options are {', '.join(known)}")
        least = 0 if known[name] == 0 else 1
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST
        if not fits and not (value is None and known[name] is None):
            raise ValueError(f"its option {name} is {value!r}; give a whole number from {least} to {LARGEST}")


def _check_weights(weights: Mapping[Any, float]) -> Mapping[Any, float]:
    if weights and not sum(weights.values()) > 0:
        raise ValueError("all weights are zero, so nothing could be drawn; raise one")
    return weights


class LoraRecipe(Strict):
    """Low-rank training of every linear layer of the backbone, active only with media."""

    rank: Width
    alpha: Annotated[float, Field(gt=0, le=65536)] = 32.0


class TokensRecipe(Strict):
    """Tokens that the backbone does not have: new rows of its vocabulary (`training.new_tokens`)."""

    names: TokenNames


class SetRecipe(Strict):
    """One data set of samples in files; see docs/data.md for the formats."""

    path: Text
    kind: Literal["messages", "llava", "webdataset", "folder", "hf"] | None = None  # None: seen from the content
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    media: Text | None = None
    licence: Annotated[str, Field(max_length=200)] = ""
    question: Annotated[str, Field(max_length=1000)] = ""


class DataRecipe(Strict):
    """Samples in files (``sets``), or composite scenes and what is asked about them.

    ``catalogue`` is a file of named pictures of one's own, JSON lines as `data.catalogue.Entry` has them; without one
    the catalogue of registry pictures is built. ``feature_dropout`` is the share of a picture's feature channels that
    are left out each time it is seen.
    """

    sets: tuple[SetRecipe, ...] = ()
    features: Literal["fp16", "int8"] = "fp16"  # how the features of sets are kept (`training.features`)
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0  # of the sets' weights: above 1 evens them out
    catalogue: Text | None = None
    scenes: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Seed = 0
    mix: dict[SceneKind, Weight] = Field(default_factory=dict)
    class_features: Share = 0.0
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    questions: dict[Task, Weight] = Field(default_factory=dict)
    yesno_focus: Annotated[float, Field(gt=0, le=100)] = 1.0

    _drawable = field_validator("mix", "questions")(_check_weights)

    @field_validator("sets")
    @classmethod
    def _different(cls, sets: tuple[SetRecipe, ...]) -> tuple[SetRecipe, ...]:
        """One file may be asked about in two ways, but the same samples have one weight."""
        read = [one.model_copy(update={"weight": 1.0, "licence": ""}) for one in sets]
        for number, one in enumerate(read):
            if one in read[:number]:
                reason = f"{one.path[:100]!r} stands there twice; keep one, with the sum of both weights"
                raise KeyFault(reason, number, "path")
        return sets

    @model_validator(mode="after")
    def _has_samples(self) -> DataRecipe:
        if bool(self.sets) == bool(self.scenes):
            raise ValueError("give either scenes (a number above 0) or sets (files of samples), and not both")
        return self


class LearningRate(Strict):
    """Peak learning rate per trained part; ``concepts`` are the matrices that start from the frozen parts."""

    projector: Rate
    concepts: Rate = 3e-4
    lora: Rate = 5e-4
    backbone: Rate = 2e-5
    tokens: Rate = 1e-3


class TrainRecipe(Strict):
    """How long and how fast.

    ``steps`` is 0 where ``epochs`` says how long, until the data are counted; ``batch_tokens`` is ``rows`` times
    ``row_tokens``, and either may be given.
    """

    steps: Count = 0
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None  # of data in files
    minutes: Annotated[float, Field(gt=0)] | None = None
    row_tokens: Annotated[int, Field(ge=32, le=8192)] = 160
    rows: Annotated[int, Field(ge=1, le=65536)] = 10
    batch_tokens: Count | None = None
    learning_rate: LearningRate
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # `training.loop.schedule`
    warmup: Annotated[int, Field(ge=0, lt=2**31)] = 40
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    sharding: Literal["none", "full"] = "none"  # full: each process keeps its share of the model (`training.sharding`)
    compile: bool = True
    seed: Seed = 0
    checkpoint_every: Count = 250
    log_every: Count = 20
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()  # beside log.jsonl (`training.logs`)

    @model_validator(mode="before")
    @classmethod
    def _either(cls, value: Any) -> Any:
        """Leave out what the other way of saying it decides; contradictions are found behind this."""
        if not isinstance(value, dict):
            return value
        value = {k: v for k, v in value.items() if v is not None or k not in INSTEAD}
        if value.get("epochs") is not None and value.get("steps") == 0:  # a resolved recipe
            del value["steps"]
        tokens, length = value.get("batch_tokens"), value.get("row_tokens", 160)
        if type(tokens) is int and type(length) is int and 0 < length <= tokens and "rows" not in value:
            value["rows"] = tokens // length
        return value

    @field_validator("log")
    @classmethod
    def _each_once(cls, log: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(once(log, "the log"))

    @field_validator("epochs")
    @classmethod
    def _or_steps(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        if epochs is not None and info.data.get("steps"):
            raise ValueError(f"steps is {info.data['steps']} as well; keep one of them")
        return epochs

    @field_validator("batch_tokens")
    @classmethod
    def _whole_rows(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        rows, length = info.data.get("rows"), info.data.get("row_tokens")
        if tokens is None or not rows or not length:
            return tokens
        if tokens % length:
            below = tokens - tokens % length
            fitting = f"{below} or {below + length}" if below else f"{length}"
            raise ValueError(f"it is no multiple of row_tokens ({length}); give {fitting}")
        if tokens != rows * length:
            raise ValueError(f"rows ({rows}) times row_tokens ({length}) is {rows * length}; leave rows out")
        return tokens

    @model_validator(mode="after")
    def _divides(self) -> TrainRecipe:
        if not self.steps and self.epochs is None:
            raise ValueError("it says no end; give steps, or epochs where the data are sets")
        if self.rows % self.processes:
            raise ValueError(f"rows ({self.rows}) must be a multiple of processes ({self.processes})")
        return self


class ObjectiveRecipe(Strict):
    """What a stage minimises; ``temperature`` and ``end_of_turn`` are those of `objectives.distill`."""

    kind: Literal["next_token", "distill"] = "next_token"
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    end_of_turn: Annotated[float, Field(ge=0, le=100)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """``objective: distill`` is short for ``objective: {kind: distill}``."""
        return {"kind": value} if isinstance(value, str) else value


class StageRecipe(Strict):
    """One stage: what it says of data and train stands over what the recipe says for all stages."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    objective: ObjectiveRecipe = ObjectiveRecipe()
    trains: tuple[Trained, ...] | None = None  # None: everything the recipe declares
    data: DataRecipe
    train: TrainRecipe

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        """A stage has the directory of its name in the output, beside the trained composition's."""
        if name == RESERVED:
            raise ValueError("the trained composition is called so in the output; give the stage another name")
        return name

    @field_validator("trains")
    @classmethod
    def _each_once(cls, trains: tuple[str, ...] | None) -> Any:
        return once(trains, "the part")


class Recipe(Strict):
    """One training run: stages in order, or a single one when none are listed."""

    name: Name
    composition: Text
    backbone: Text | None = None  # another language model than the composition's (`backbones.choice`)
    output: Text
    projector: ProjectorRecipe
    lora: LoraRecipe | None = None
    tokens: TokensRecipe | None = None
    data: DataRecipe
    train: TrainRecipe
    stages: tuple[StageRecipe, ...] = ()
    install: Text | None = None  # where the finished composition is copied to (`training.install`)
    evaluate: Literal["photographs"] | None = None  # at the end, on the development half

    @field_validator("backbone")
    @classmethod
    def _known(cls, text: str | None) -> str | None:
        if text is not None:
            from sensorium.backbones.choice import check

            try:
                check(text)
            except UsageError as error:
                reason = str(error).removeprefix(f"the backbone {text[:200]!r}").removesuffix(".")
                raise ValueError(f"it{reason}") from None
        return text

    @field_validator("stages")
    @classmethod
    def _listed(cls, stages: tuple[StageRecipe, ...]) -> tuple[StageRecipe, ...]:
        if not stages:
            raise ValueError("it is empty; list at least one stage, or leave the key out for a single one")
        return stages

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        for number, name in enumerate(names):
            if name in names[:number]:
                reason = f"two stages have one name ({name}); their checkpoints would collide"
                raise KeyFault(reason, "stages", number, "name")
        for number, stage in enumerate(self.plan()):
            at = ("stages", number) if self.stages else ()
            self._check_parts(stage, at)
            if stage.train.epochs is not None and not stage.data.sets:
                reason = f"stage {stage.name} counts epochs, and scenes are drawn without end; give steps"
                raise KeyFault(reason, *at, "train", "epochs")
            if stage.data.sets and stage.objective.kind != "next_token":
                reason = f"stage {stage.name} reads sets, which have no text twins; use objective: next_token"
                raise KeyFault(reason, *at, "objective")
            for key in ("processes", "sharding"):
                if getattr(stage.train, key) != getattr(self.train, key):
                    reason = f"all stages run in the same processes; set train.{key} once, for the recipe"
                    raise KeyFault(reason, *at, "train", key)
        if self.projector.words and not self.plan()[0].data.scenes:
            reason = "words are learnt from the scenes of the first stage, which has none; leave words out"
            raise KeyFault(reason, "projector", "words")
        return self

    def _check_parts(self, stage: StageRecipe, at: tuple[str | int, ...]) -> None:
        """What a stage trains must be declared, and must be able to learn together."""
        trains = self.trains(stage)
        if not trains:
            raise KeyFault(f"stage {stage.name} trains nothing; list some of {', '.join(PARTS)}", *at, "trains")
        for part, fix in (("lora", "lora: {rank: 16}"), ("tokens", 'tokens: {names: ["<a>", "<b>"]}')):
            if part in trains and not getattr(self, part):
                what = "a lora" if part == "lora" else part
                reason = f"stage {stage.name} trains {what} and the recipe declares none; add {fix}"
                raise KeyFault(reason, *at, "trains")
        if "backbone" in trains and self.lora:
            reason = f"stage {stage.name} trains the backbone, which a lora changes without training it; leave one out"
            raise KeyFault(reason, *at, "trains")
        if "backbone" in trains and stage.objective.kind == "distill":
            reason = f"stage {stage.name} would train its own teacher, the backbone; use objective: next_token"
            raise KeyFault(reason, *at, "objective")

    def trains(self, stage: StageRecipe) -> tuple[str, ...]:
        """The parts that learn in a stage: those it names, else all that the recipe declares (never the backbone)."""
        declared = ("projector", *(part for part in ("lora", "tokens") if getattr(self, part)))
        return declared if stage.trains is None else stage.trains

    @property
    def trains_backbone(self) -> bool:
        """Whether the whole backbone learns in any stage."""
        return any("backbone" in self.trains(stage) for stage in self.plan())

    def plan(self) -> tuple[StageRecipe, ...]:
        """The stages to run; a recipe that lists none is one stage."""
        return self.stages or (StageRecipe(name="train", data=self.data, train=self.train),)

    def directory(self, stage: StageRecipe) -> Path:
        """Where a stage keeps its checkpoint and log: the output itself when there is one stage."""
        return Path(self.output) / stage.name if self.stages else Path(self.output)

    def dump(self) -> str:
        """The resolved recipe as YAML, as it is saved with the run."""
        without = None if self.stages else {"stages"}
        return yaml.safe_dump(self.model_dump(mode="json", exclude=without), sort_keys=False)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.subkey=value`` texts, the value written as YAML; the key must stand in the recipe's schema.

    Raises:
        UsageError: the file, a key or a value is wrong; one sentence with the line where there is one.
    """
    return read(path, Recipe, overrides, spread)


def facts(recipe: Recipe, stage: StageRecipe) -> dict[str, Any]:
    """What must stay the same when a stage is resumed, by dotted key: the rest (steps, rates, output) may change."""
    kept = recipe.model_dump(mode="json", include={"projector", "lora", "tokens"})
    kept["data"] = stage.data.model_dump(mode="json")
    kept["train"] = stage.train.model_dump(mode="json", include={"rows", "row_tokens", "precision", "seed"})
    if recipe.stages:
        kept["stage"] = stage.model_dump(mode="json", include={"name", "objective", "trains"})
    return dict(flat(kept))
