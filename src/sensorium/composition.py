"""A composition: the YAML file that names frozen parts and trained projectors -> checked specs -> loaded parts.

    composition.yaml    which parts, from where, with which options            (people write it)
    manifest.json       what was trained against which frozen parts, digests   (training writes it)
    *.onnx, *.safetensors   the trained projectors and LoRA

Loading checks every seam (`seams.py`) before anything runs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from sensorium import config, hub
from sensorium.errors import SensoriumError, UsageError

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec

FILE = "composition.yaml"
MANIFEST = "manifest.json"
PACKAGED = Path(__file__).parent / "compositions"
HF_FILES = (
    "*config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
)
"""What of a Hugging Face repository is fetched."""
Modality = Literal["image", "speech"]
"""What a composition can take in besides text."""
ON_DEMAND: frozenset[Modality] = frozenset({"speech"})
"""What is fetched and checked when it first comes: its parts need an extra, and who never speaks must not wait for
them."""
CHANGING: frozenset[Modality] = frozenset({"image"})
"""What runs the LLM with its LoRA and new tokens (`active: media`); with anything else it runs as published."""
Spoken = Literal["speech"]
"""What a composition can give besides text."""


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("a name stands there twice; give each token a name of its own")
    return names


TokenName = Annotated[str, Field(min_length=2, max_length=64, pattern=r"^[!-~]+$")]
TokenNames = Annotated[tuple[TokenName, ...], Field(min_length=1, max_length=4096), AfterValidator(_different)]
"""How new tokens may be called, here and in recipes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def inside(name: str) -> str:
    """`name`, when it is a file inside the directory of a composition; ValueError otherwise."""
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError("it must name a file inside the composition's directory")
    return name


class PartConfig(_Strict):
    """Where a frozen file comes from; see `hub.Part`. A relative `file:` path counts from the composition's
    directory. A file that is published in pieces has the source `join:name`. `files` are sha256 of files in a
    directory, which `hub.Folder` describes."""

    source: str
    file: str = ""
    sha256: str = ""
    licence: str = ""
    size: int | None = Field(None, ge=0)
    file_sha256: str | None = None
    pieces: tuple[PartConfig, ...] = ()
    files: dict[str, str] = {}

    def hub_folder(self, path: Path, lines: config.Lines, *keys: str) -> hub.Folder:
        """The hub's view of the directory that stands at `keys` of the file `path`. Raises UsageError with its line."""
        odd = [name for name in ("file", "sha256", "file_sha256", "pieces") if getattr(self, name)]
        try:
            if odd:
                raise SensoriumError(
                    f"a directory has no {odd[0]}; give sha256 of its files as `files: {{name: sha256}}`."
                )
            return hub.Folder(self._absolute(path), self.files, self.licence)
        except SensoriumError as error:
            raise UsageError(f"{config.where(path, lines, *keys, 'part')}: {error}") from None

    def _absolute(self, path: Path) -> str:
        if not self.source.startswith("file:"):
            return self.source
        return f"file:{path.parent.absolute() / Path(self.source.removeprefix('file:')).expanduser()}"

    def hub_part(self, path: Path, lines: config.Lines, *keys: str) -> hub.Part:
        """The hub's view of the part that stands at `keys` of the file `path`. Raises UsageError with its line."""
        pieces = tuple(piece.hub_part(path, lines, *keys) for piece in self.pieces)
        try:
            if self.files:
                raise SensoriumError(
                    "only a directory has `files`; write `format: hf` for a language model that is one."
                )
            return hub.Part(
                self._absolute(path), self.file, self.sha256, self.size, self.licence, self.file_sha256, pieces
            )
        except SensoriumError as error:
            raise UsageError(f"{config.where(path, lines, *keys, 'part')}: {error}") from None


class BackboneConfig(_Strict):
    """The LLM: a GGUF file, or a Hugging Face directory (`format: hf`).

    `template` is a key of `prompt.TEMPLATES`. The ONNX engine runs on the CPU in `quantization`; int8 is the
    quality-preserving default. The torch engine runs directories alone, on `device` in `dtype` ("auto" is bf16 on a GPU
    and fp32 on the CPU). `engine: auto` takes ONNX for the architectures that it knows, else torch.
    """

    part: PartConfig
    format: Literal["gguf", "hf"] = "gguf"
    quantization: Literal["int8", "fp32"] = "int8"
    engine: Literal["auto", "onnx", "torch"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    template: str = "chatml"

    @field_validator("engine")
    @classmethod
    def _torch_reads_directories(cls, engine: str, info: ValidationInfo) -> str:
        if engine == "torch" and info.data.get("format") == "gguf":
            raise ValueError("it runs Hugging Face directories; write `format: hf` and name one, or use onnx")
        return engine


class EncoderConfig(_Strict):
    """A frozen encoder: a kind of `sensorium.encoders`, its weights and its options."""

    kind: str
    part: PartConfig
    options: dict[str, Any] = {}


class ProjectorConfig(_Strict):
    """A trained projector: a kind of `projectors.spec`, the encoder that it reads, its weights and their ONNX twin."""

    kind: str
    encoder: str
    weights: str
    onnx: str
    options: dict[str, Any] = {}

    _paths = field_validator("weights", "onnx")(inside)


class LoraConfig(_Strict):
    """Trained low-rank changes of the backbone, active only in conversations that hold media of `CHANGING`."""

    weights: str
    active: Literal["media"] = "media"

    _paths = field_validator("weights")(inside)


class NewTokensConfig(_Strict):
    """Trained rows of tokens that the backbone does not have: `embeddings` [n, dim] as its table has them, and `head`
    [n, dim] where its head is no table; the first has the id behind its vocabulary."""

    weights: str
    names: TokenNames

    _paths = field_validator("weights")(inside)


class GeneratorConfig(_Strict):
    """A frozen generator: a kind of `sensorium.generators`, its file where it is no Python package, and its options."""

    kind: str
    part: PartConfig | None = None
    options: dict[str, Any] = {}


class OutputProjectorConfig(_Strict):
    """A trained output projector: a kind of `projectors.output`, the generator whose units it gives, its weights and
    their ONNX twin."""

    kind: str
    generator: str
    weights: str
    onnx: str
    options: dict[str, Any] = {}

    _paths = field_validator("weights", "onnx")(inside)


class CompositionSpec(_Strict):
    """`composition.yaml`, validated. `licence` is that of the trained parts."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    licence: str = ""
    backbone: BackboneConfig
    encoders: dict[Modality, EncoderConfig] = {}
    projectors: dict[Modality, ProjectorConfig] = {}
    lora: LoraConfig | None = None
    new_tokens: NewTokensConfig | None = None
    generators: dict[Spoken, GeneratorConfig] = {}
    output_projectors: dict[Spoken, OutputProjectorConfig] = {}


class Manifest(BaseModel):
    """`manifest.json`: what training wrote. Unknown keys are kept, so that a newer writer stays readable.

    Attributes:
        schema_version: 1.
        frozen: fingerprint of each frozen part that the training saw: "backbone", "encoders.image".
        files: sha256 of each file beside the manifest.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    frozen: dict[str, str] = {}
    files: dict[str, str] = {}
    recipe: Any = None
    data: Any = None
    metrics: dict[str, Any] = {}


class Composition:
    """A composition on disk: its spec, its manifest and its frozen parts.

    Attributes:
        spec: the validated `composition.yaml`.
        directory: where it stands.
        manifest: the validated `manifest.json`, or None where there is none: no trained parts, or not trained yet.
    """

    def __init__(self, directory: Path) -> None:
        """Read the two files of `directory`. Nothing is fetched or run yet.

        Raises:
            UsageError: `composition.yaml` is missing or malformed; the sentence has the line.
            SensoriumError: the manifest is malformed.
        """
        self.directory = directory
        self.path = directory / FILE
        if config.kind_of(self.path) == "clip":
            raise UsageError(
                f"{self.path} is a two-tower model, which compares pictures and texts and writes no answers; use it "
                "with `sensorium search` or `sensorium classify --head clip`."
            )
        self.spec, self.lines = config.parse(self.path, CompositionSpec)
        for name, projector in self.spec.projectors.items():
            if projector.encoder not in self.spec.encoders:
                known = ", ".join(self.spec.encoders) or "none"
                raise UsageError(
                    f"{self.where('projectors', name, 'encoder')}: the projector {name!r} reads the encoder "
                    f"{projector.encoder!r}, "
                    f"which is not declared; declared encoders: {known}."
                )
            if projector.encoder != name:
                raise UsageError(
                    f"{self.where('projectors', name, 'encoder')}: the projector {name!r} reads the encoder "
                    f"{projector.encoder!r}, which takes another medium; write `encoder: {name}`."
                )
        for spoken, output in self.spec.output_projectors.items():
            if output.generator not in self.spec.generators:
                known = ", ".join(self.spec.generators) or "none"
                raise UsageError(
                    f"{self.where('output_projectors', spoken, 'generator')}: the output projector {spoken!r} speaks "
                    f"to the generator {output.generator!r}, which is not declared; declared generators: {known}."
                )
        self.manifest = self._read_manifest()

    @classmethod
    def find(cls, name_or_dir: str | Path) -> Composition:
        """The composition of this directory, or the packaged one of this name. Raises UsageError when there is none."""
        given = str(name_or_dir)
        packaged = PACKAGED / given
        directory = Path(name_or_dir).expanduser()
        try:
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", given) and (packaged / FILE).is_file():
                return cls(packaged)
            if directory.name == FILE:
                directory = directory.parent
            if given and (directory / FILE).is_file():
                return cls(directory)
        except (OSError, ValueError):  # a name that no file system takes: too long, or with a NUL
            pass
        names = f" nor one of {', '.join(packaged_names())}" if packaged_names() else ""
        raise UsageError(f"{given[:200]!r} is no model: it is neither a directory with a {FILE}{names}.")

    def over(self, backbone: BackboneConfig) -> Composition:
        """These encoders with another LLM. What was trained for this one's LLM fits no other and is left out."""
        other = copy.copy(self)
        other.spec = CompositionSpec(name=self.name, backbone=backbone, encoders=self.spec.encoders)
        other.manifest = None
        other.lines = {keys: line for keys, line in self.lines.items() if keys[0] != "backbone"}
        vars(other).pop("trained_files", None)
        return other

    @property
    def name(self) -> str:
        """The composition's own name."""
        return self.spec.name

    def where(self, *keys: str | int) -> str:
        """`path, line n` of a key, for error messages."""
        return config.where(self.path, self.lines, *keys)

    def part(self, *keys: str) -> hub.Part:
        """The hub's view of a frozen part: `part("backbone")`, `part("encoders", "image")`."""
        declared: Any = self.spec
        for key in keys:
            declared = declared[key] if isinstance(declared, dict) else getattr(declared, key)
        made: hub.Part = declared.part.hub_part(self.path, self.lines, *keys)
        return made

    def folder(self) -> hub.Folder:
        """The hub's view of an LLM that is a Hugging Face directory."""
        return self.spec.backbone.part.hub_folder(self.path, self.lines, "backbone")

    def backbone_path(self, *, progress: bool = True) -> Path:
        """The LLM's file, or its directory (`format: hf`); fetched when need be."""
        if self.spec.backbone.format == "gguf":
            return hub.fetch(self.part("backbone"), progress=progress)
        return hub.fetch_folder(self.folder(), HF_FILES, progress=progress)

    def identity(self, *keys: str) -> str:
        """A hash that changes when the part's file may have changed, without reading the file: keys of caches."""
        if keys == ("backbone",) and self.spec.backbone.format == "hf":
            from sensorium.backbones.hf_folder import files_of

            states = [(path, path.stat()) for path in files_of(self.backbone_path())]
            facts = "".join(f"{path}:{state.st_size}:{state.st_mtime_ns}\n" for path, state in states)
            return hashlib.sha256(facts.encode()).hexdigest()
        part = self.part(*keys)
        if part.sha256:
            return hashlib.sha256(f"{part.sha256}:{part.file}:{part.file_sha256}".encode()).hexdigest()
        path = hub.fetch(part)
        state = path.stat()
        return hashlib.sha256(f"{path}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()

    def file(self, name: str) -> Path:
        """A trained file beside the composition. Raises SensoriumError when it is missing."""
        path = self.directory / name
        if not path.is_file():
            raise SensoriumError(
                f"{path} is missing, but {self.path} declares it; train or fetch the composition again."
            )
        return path

    def tokens(self, modality: str, features: FeatureSpec, frames: int | None = None) -> int:
        """LLM positions that one medium takes, of so many `frames` where its features lie along time
        (`projectors.spec`)."""
        from sensorium.projectors.spec import positions_for, tokens_for

        projector = self.spec.projectors[modality]  # type: ignore[index]
        try:
            least = tokens_for(projector.kind, projector.options, features)
            return least if frames is None else positions_for(projector.kind, projector.options, frames)
        except UsageError as error:
            raise UsageError(f"{self.where('projectors', modality)}: {error}") from None

    @cached_property
    def trained_files(self) -> list[str]:
        """Names of the trained files: projectors, their ONNX twins (which may map weights from them), LoRA, tokens."""
        names = [name for projector in self.spec.projectors.values() for name in (projector.onnx, projector.weights)]
        return names + [part.weights for part in (self.spec.lora, self.spec.new_tokens) if part]

    @cached_property
    def output_files(self) -> list[str]:
        """Names of the files of output projectors, which are checked when they are first used."""
        return [name for output in self.spec.output_projectors.values() for name in (output.onnx, output.weights)]

    def check_files(self, names: Sequence[str] | None = None) -> None:
        """Compare the sha256 of trained files (by default `trained_files`) with the manifest.

        Raises:
            SensoriumError: a file or the manifest is missing, or a file is not listed or has another digest.
        """
        names = self.trained_files if names is None else names
        if not names:
            return
        if self.manifest is None:
            raise SensoriumError(
                f"{self.directory / MANIFEST} is missing, but {self.path} declares trained parts; "
                "train or fetch the composition again."
            )
        listed = self.manifest.files
        for name in names:
            path = self.file(name)
            if name not in listed:
                raise SensoriumError(
                    f"{self.directory / MANIFEST} lists no sha256 of {name}; train or fetch the composition again."
                )
            digest = file_sha256(path)
            if digest != listed[name]:
                raise SensoriumError(
                    f"{path} has sha256 {digest[:12]}..., but {MANIFEST} lists {listed[name][:12]}...; "
                    "the file was changed or damaged, fetch the composition again."
                )

    def _read_manifest(self) -> Manifest | None:
        path = self.directory / MANIFEST
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_bytes()[: config.MAX_BYTES * 16])
        except (ValueError, RecursionError):
            raise SensoriumError(f"{path} is not valid JSON; train or fetch the composition again.") from None
        try:
            return config.validate(data, Manifest, path)
        except UsageError as error:
            raise SensoriumError(str(error)) from None


def packaged_names() -> list[str]:
    """Names of the compositions that ship with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{FILE}")) if PACKAGED.is_dir() else []


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
