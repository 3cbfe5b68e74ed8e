"""A two-tower model: pictures and texts as vectors of one space, so that what belongs together lies together.

    picture --image encoder--> features --image head--> vector of length 1
    text    --text encoder---> features --text head---> vector of length 1       likeness = cosine of the two

The heads were trained by `training/clip_run.py`, between frozen encoders or together with one or both. It is a
composition of kind `clip`: a directory with `composition.yaml`, `manifest.json` and the heads as ONNX over safetensors,
like any other. An encoder that was trained has its weights there too, as safetensors, and runs like the published one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from sensorium import composition as compositions
from sensorium import config, hub
from sensorium.composition import FILE, MANIFEST, EncoderConfig, Manifest, file_sha256
from sensorium.errors import SensoriumError, UsageError
from sensorium.loading import Lazy

if TYPE_CHECKING:
    from sensorium.encoders.base import Encoder, TextEncoder
    from sensorium.projectors.runtime import Projector

DEFAULT = "mini-clip"
Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TowerConfig(EncoderConfig):
    """An encoder; `trained` is a file in the composition's directory whose weights stand for those of the part."""

    trained: str | None = None

    _path = field_validator("trained")(lambda name: name if name is None else compositions.inside(name))


class TextEncoderConfig(TowerConfig):
    """`tokenizer` is a further file of the part's archive."""

    tokenizer: str = ""


class Encoders(_Strict):
    """The two towers."""

    image: TowerConfig
    text: TextEncoderConfig


class Head(_Strict):
    """A trained head: its weights, and the ONNX graph over them."""

    weights: str
    onnx: str

    _paths = field_validator("weights", "onnx")(compositions.inside)


class Heads(_Strict):
    """Both heads."""

    image: Head
    text: Head


class TowersManifest(Manifest):
    """What training wrote; `trained` has the fingerprint of each encoder that was trained with the heads."""

    trained: dict[str, str] = Field(default_factory=dict)


class TwoTowerSpec(_Strict):
    """`composition.yaml` of kind `clip`.

    ``temperature`` divides cosines before a softmax over labels; it was fitted on photographs used for nothing else.
    """

    kind: Literal["clip"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    licence: str = ""
    encoders: Encoders
    heads: Heads | None = None
    temperature: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 0.01


def find(name_or_dir: str | Path) -> Path:
    """The directory of a two-tower composition. Raises UsageError when there is none of this name."""
    given = str(name_or_dir)
    directory = Path(name_or_dir).expanduser()
    places = [compositions.PACKAGED / given] if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", given) else []
    for place in [*places, directory.parent if directory.name == FILE else directory]:
        try:
            if given and (place / FILE).is_file():
                return place
        except (OSError, ValueError):
            pass
    raise UsageError(f"{given[:200]!r} is no two-tower model: it is neither a directory with a {FILE} nor {DEFAULT}.")


class TwoTower:
    """A two-tower model that runs.

    Args:
        name_or_dir: "mini-clip", which ships with the package, or a directory.
        threads: threads of each part, None for one per core.
        progress: whether downloads are reported on standard error.

    Raises:
        UsageError: there is no such model, or its file is malformed.
    """

    def __init__(self, name_or_dir: str | Path = DEFAULT, threads: int | None = None, progress: bool = True) -> None:
        from sensorium.arguments import check_model, check_threads

        check_model(name_or_dir)
        check_threads(threads)
        self.directory = find(name_or_dir)
        self.path = self.directory / FILE
        if is_generative(self.path):
            raise UsageError(f"{self.path} composes a language model, not two towers; name a composition of kind clip.")
        self.spec, self.lines = config.parse(self.path, TwoTowerSpec)
        self.threads, self.progress = threads, progress
        self.image_encoder: Lazy[Encoder] = Lazy(self._image_encoder)
        self.text_encoder: Lazy[TextEncoder] = Lazy(self._text_encoder)
        self._heads: dict[Side, Lazy[Projector]] = {"image": Lazy(self._image_head), "text": Lazy(self._text_head)}

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.spec.name

    def embed(self, image: Any = None, *, text: str | None = None) -> np.ndarray:
        """The vector of one picture or of one text, of length 1: float32 [dim].

        Args:
            image: anything that `load_image` takes.
            text: a text.

        Raises:
            UsageError: both were given, or neither.
            SensoriumError: the picture cannot be read, or a part cannot be used.
        """
        from sensorium.media import load_image

        if (image is None) == (text is None):
            raise UsageError("give embed a picture or a text, one of the two.")
        if text is not None:
            return self.embed_texts([text])[0]
        return self.embed_images([load_image(image).pixels])[0]

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of uint8 pictures [H, W, 3], each of length 1: float32 [N, dim]."""
        return self.project_images(self.image_encoder.get().encode(images))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, each of length 1: float32 [N, dim]."""
        return self.project_texts(self.text_encoder.get().encode_text(texts))

    def project_images(self, features: np.ndarray) -> np.ndarray:
        """The image encoder's features [N, cells, dim] as vectors of length 1: float32 [N, dim]."""
        return self._unit(self._heads["image"].get(), features)

    def project_texts(self, features: np.ndarray) -> np.ndarray:
        """The text encoder's features [N, dim] as vectors of length 1: float32 [N, dim]."""
        return self._unit(self._heads["text"].get(), features[:, None])

    def head(self, side: Side) -> Projector:
        """A trained head, checked; its vectors have any length. Raises SensoriumError when it cannot be used."""
        return self._heads[side].get()

    def identity(self) -> str:
        """A hash of all that decides a picture's vector: what is indexed under another is of no use."""
        return hashlib.sha256(f"{self.fingerprint('image')};{self._digest('image')}".encode()).hexdigest()

    def part(self, side: Side) -> hub.Part:
        """The hub's view of an encoder as published."""
        declared: TowerConfig = getattr(self.spec.encoders, side)
        return declared.part.hub_part(self.path, self.lines, "encoders", side)

    def where(self, *keys: str) -> str:
        """`path, line n` of a key, for error messages."""
        return config.where(self.path, self.lines, *keys)

    def fetch(self, side: Side) -> tuple[Path, dict[str, Any]]:
        """The weights of an encoder, and its options, with the tokenizer that its archive holds."""
        declared, part = getattr(self.spec.encoders, side), self.part(side)
        options = {"threads": self.threads, **declared.options}
        if declared.trained:
            self._listed(declared.trained)
            weights = self.directory / declared.trained
        else:
            weights = hub.fetch(part, progress=self.progress)
        if side == "text" and declared.tokenizer:
            if part.file or part.sha256:
                other = replace(part, file=declared.tokenizer, file_sha256=None)
                options["tokenizer"] = hub.fetch(other, progress=self.progress)
            else:  # a plain file of one's own: the tokenizer stands in the directory too
                options["tokenizer"] = self.directory / declared.tokenizer
        elif side == "text" and declared.trained:
            options["tokenizer"] = hub.fetch(part, progress=self.progress).with_name("tokenizer.json")
        return weights, options

    def fingerprint(self, side: Side) -> str:
        """The fingerprint of an encoder that the heads were trained against or with, as the manifest lists it."""
        name = f"encoders.{side}"
        listed = self.manifest.trained if getattr(self.spec.encoders, side).trained else self.manifest.frozen
        return str(listed.get(name))

    @cached_property
    def manifest(self) -> TowersManifest:
        """What training wrote. Raises SensoriumError when it is missing or malformed."""
        import json

        path = self.directory / MANIFEST
        try:
            data = json.loads(path.read_bytes()[: config.MAX_BYTES * 16])
            return config.validate(data, TowersManifest, path)
        except OSError:
            raise SensoriumError(f"{path} is missing, so this model has no trained heads yet; train it.") from None
        except (ValueError, RecursionError):
            raise SensoriumError(f"{path} is not valid JSON; train or fetch the model again.") from None
        except UsageError as error:
            raise SensoriumError(str(error)) from None

    # How each part is made --------------------------------------------------------------------------------------------

    @staticmethod
    def _unit(head: Projector, features: np.ndarray) -> np.ndarray:
        if not len(features):
            return np.zeros((0, head.dim), np.float32)
        vectors = head(features)[:, 0]
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _image_encoder(self) -> Encoder:
        from sensorium import encoders

        weights, options = self.fetch("image")
        return encoders.create(self.spec.encoders.image.kind, weights, **options)

    def _text_encoder(self) -> TextEncoder:
        from sensorium import encoders

        weights, options = self.fetch("text")
        return encoders.create_text(self.spec.encoders.text.kind, weights, **options)

    def _image_head(self) -> Projector:
        spec = self.image_encoder.get().spec
        return self._head("image", spec, getattr(spec.layout, "cells", 0))

    def _text_head(self) -> Projector:
        return self._head("text", self.text_encoder.get().spec, 1)

    def _head(self, side: Side, features: Any, cells: int) -> Projector:
        """A head, checked against its digest and against the encoder before it."""
        from sensorium.projectors.runtime import Projector

        self._digest(side)  # for its checks
        wanted = self.fingerprint(side)
        if wanted != features.fingerprint:
            state = "trained" if getattr(self.spec.encoders, side).trained else "frozen"
            raise SensoriumError(
                f"The {state} part 'encoders.{side}' has fingerprint {features.fingerprint[:12]}..., but "
                f"{self.directory / MANIFEST} says that the heads were trained against {wanted[:12]}...; use that "
                "part, or train the heads for this one."
            )
        assert self.spec.heads is not None
        head = Projector(self.directory / getattr(self.spec.heads, side).onnx, self.threads)
        if (head.cells, head.feature_dim, head.tokens) != (cells, features.dim, 1):
            raise SensoriumError(
                f"{self.where('heads', side)}: the {side} head takes {head.cells} x {head.feature_dim} features and "
                f"gives {head.tokens} vectors, but the encoder gives {cells} x {features.dim} for one; train the heads "
                "for it."
            )
        other = self._heads["text" if side == "image" else "image"]
        if other.ready and other.get().dim != head.dim:
            raise SensoriumError(
                f"{self.where('heads')}: the heads give vectors of {head.dim} and {other.get().dim} numbers, which "
                "cannot be compared; train them together."
            )
        return head

    def _digest(self, side: Side) -> str:
        """sha256 of a head's two files, compared with the manifest."""
        if self.spec.heads is None:
            raise SensoriumError(f"{self.path} declares no heads, so nothing was trained yet; train it.")
        declared = getattr(self.spec.heads, side)
        return ";".join(self._listed(name) for name in (declared.onnx, declared.weights))

    def _listed(self, name: str) -> str:
        """sha256 of a trained file, compared with the manifest."""
        path = self.directory / name
        if not path.is_file():
            raise SensoriumError(f"{path} is missing, but {self.path} declares it; train or fetch the model again.")
        found, listed = file_sha256(path), self.manifest.files.get(name)
        if found != listed:
            raise SensoriumError(
                f"{path} has sha256 {found[:12]}..., but {MANIFEST} lists {str(listed)[:12]}...; the file was changed "
                "or damaged, fetch it again."
            )
        return found


def is_two_tower(name_or_dir: str | Path) -> bool:
    """Whether this is the name or the directory of a composition of kind `clip`; its errors are left to its reader."""
    try:
        return config.kind_of(find(name_or_dir) / FILE) == "clip"
    except UsageError:
        return False


def is_generative(path: Path) -> bool:
    """Whether a composition.yaml declares a language model, which a two-tower model has not."""
    data, _ = config.read_yaml(path)
    return "backbone" in data and data.get("kind") != "clip"
