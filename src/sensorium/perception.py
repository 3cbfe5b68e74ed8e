"""From a conversation to what the engine reads, one path for all media.

    messages --prompt.render--> spans;   each medium --encoder--> features --projector--> embeddings;   both: segments

A conversation without pictures runs the backbone as published, bit for bit. One that holds a picture runs the same
backbone with the composition's LoRA and new tokens, where it has them.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sensorium.backbones.segments import Segment
from sensorium.errors import SensoriumError, UsageError
from sensorium.media import Audio, Image, Limits, load_audio
from sensorium.media.audio import RATE
from sensorium.messages import NOUNS, Message, kind_of, named
from sensorium.prompt import Rendered, render

if TYPE_CHECKING:
    from sensorium.backbones.engine import Engine
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.composition import Composition
    from sensorium.loading import Parts

REMEMBERED = 64
"""Media that are kept, the latest used."""
SILENCE = 1e-3
"""Of the loudest sample; full scale is 1. Below it (-60 dB) nobody speaks."""


class Sense(NamedTuple):
    """How one kind of media enters.

    Attributes:
        takes: the type it must have.
        array: what of it the encoder takes.
        plural: its name in messages to people.
        instead: what to do where a composition does not take it.
    """

    takes: type
    array: Callable[[Any], np.ndarray]
    plural: str
    instead: str = ""


def heard(sound: Audio) -> np.ndarray:
    """The samples of speech as encoders take them: float32 [n] at 16 kHz. Raises SensoriumError for silence."""
    samples = load_audio(sound).samples
    if np.abs(samples).max() < SILENCE:
        raise SensoriumError(f"{sound.source} holds silence alone; give a recording in which somebody speaks.")
    return samples


SENSES = {
    "image": Sense(Image, lambda picture: picture.pixels, "pictures"),
    "speech": Sense(Audio, heard, "speech", "; `sensorium transcribe` writes it down"),
}
"""By the kind of media, which is also the name of its encoder and its projector."""


@dataclass(frozen=True)
class Perceived:
    """What is kept of a medium.

    Attributes:
        embeds: float32 [positions, backbone dim], what the LLM reads.
        pooled: float32 [feature dim], its features averaged.
        key: a digest of everything that `embeds` depend on.
    """

    embeds: np.ndarray
    pooled: np.ndarray
    key: str


@dataclass
class Prepared:
    """A conversation ready for the engine. `load_s` was spent waiting for parts, `encode_s` on media."""

    rendered: Rendered
    segments: list[Segment]
    engine: Engine
    tokenizer: Tokenizer
    load_s: float
    encode_s: float


class Perception:
    """Lays conversations out and perceives their media, each once. May be shared by threads."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._known: OrderedDict[str, Perceived] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, messages: Sequence[Message], *, blind: bool = False) -> Prepared:
        """Lay out a conversation, perceive its media (unless `blind`, which leaves them out) and choose the engine.

        Raises:
            UsageError: a kind of media that the composition does not take, or more of it than the context holds.
            SensoriumError: a medium that nothing can be perceived in, or parts that do not fit.
        """
        parts = self.parts
        media = [medium for message in messages for medium in message.media]
        kinds = {kind_of(medium) for medium in media}
        check_media(parts.composition, media)
        started = time.perf_counter()
        engine, tokenizer = parts.ready(kinds)
        loaded = time.perf_counter()
        template = parts.composition.spec.backbone.template
        rendered = render(messages, tokenizer, 0 if blind else self.count, template=template)
        if media and rendered.length > engine.context:
            raise UsageError(
                f"The conversation takes {rendered.length} positions, {rendered.media_tokens} of them for its media, "
                f"and the model's context holds {engine.context}; shorten the text or attach less."
            )
        perceived = [] if blind else [self.perceive(medium) for medium in rendered.media]
        taken = {id(medium): len(one.embeds) for medium, one in zip(rendered.media, perceived)}
        if sum(taken.values()) < rendered.media_tokens and not blind:  # a projector left out what says nothing
            rendered = render(messages, tokenizer, lambda medium: taken[id(medium)], template=template)
        encode_s = time.perf_counter() - loaded if media else 0.0
        return Prepared(rendered, _segments(rendered, perceived), engine, tokenizer, loaded - started, encode_s)

    def perceive(self, medium: Any, features: np.ndarray | None = None) -> Perceived:
        """Encode and project one medium, or remember it: the same one is encoded once.

        Args:
            medium: a `sensorium.Image` or `sensorium.Audio`.
            features: what the encoder gives for it, float32 [cells or frames, feature dim], where that is known.
        """
        check_media(self.parts.composition, [medium])
        kind = kind_of(medium)
        encoder, projector = self.parts.sense(kind)
        name = f"{_content(medium)}:{encoder.spec.fingerprint}:{projector.path}"
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return self._known[name]
        if features is None:
            features = encoder.encode([SENSES[kind].array(medium)])[0]
        key = hashlib.sha256(name.encode()).hexdigest()
        perceived = Perceived(projector(features[None])[0], features.mean(axis=0), key)
        with self._lock:
            self._known[name] = perceived
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return perceived

    def count(self, medium: Any) -> int:
        """The LLM positions that a medium takes at most."""
        kind = kind_of(medium)
        features, frames = self.parts.features[kind].get(), None
        if features.rate_hz is not None:
            frames = math.ceil(len(load_audio(medium).samples) * features.rate_hz / RATE)
        return self.parts.composition.tokens(kind, features, frames)

    def hearing(self) -> Limits:
        """Limits for sound that is to be heard: longer than the context it is refused before it is decoded."""
        composition = self.parts.composition
        features = self.parts.features["speech"].get() if "speech" in composition.spec.projectors else None
        if features is None or features.rate_hz is None:
            return Limits()
        positions = composition.tokens("speech", features, math.ceil(3600 * features.rate_hz))
        most = 3600 * self.parts.backbone.get().context / positions
        return Limits(max_seconds=most, who=f"that the model {composition.name!r} hears at once")

    def forget(self) -> None:
        """Drop what was perceived."""
        with self._lock:
            self._known.clear()


def check_kinds(composition: Composition, kinds: Collection[str]) -> None:
    """Raise UsageError for kinds of media that a composition does not take."""
    for kind in kinds:
        if kind not in composition.spec.projectors:
            taken = " and ".join(["text", *(SENSES[each].plural for each in composition.spec.projectors)])
            instead = SENSES[kind].instead if kind in SENSES else ""
            raise UsageError(
                f"the model {composition.name!r} takes {taken} only, and the conversation holds "
                f"{NOUNS.get(kind, 'a medium')}{instead}."
            )


def check_media(composition: Composition, media: Sequence[Any]) -> None:
    """Raise UsageError for media that a composition does not take, or that are none."""
    check_kinds(composition, [kind_of(medium) for medium in media])
    for medium in media:
        if not isinstance(medium, SENSES[kind_of(medium)].takes):
            raise UsageError(
                f"a value of type {type(medium).__name__} stands for {named(medium)}; give what sensorium.load_image "
                "or sensorium.load_audio returns."
            )


def _content(medium: Any) -> str:
    """A digest of what is perceived: of sound the samples, as one file may be decoded at several rates."""
    if isinstance(medium, Audio):
        return hashlib.sha256(load_audio(medium).samples.tobytes()).hexdigest()
    return str(medium.sha256)


def _segments(rendered: Rendered, perceived: Sequence[Perceived]) -> list[Segment]:
    """The spans as the engine takes them: ids, embeddings, ids, ..., ids. Without `perceived`, media are left out."""
    segments: list[Segment] = []
    ids: list[int] = []
    for span in rendered.spans:
        if span.media is None or not perceived:
            ids.extend(span.ids)
            continue
        medium = perceived[span.media]
        if len(medium.embeds) != span.count:
            given = named(rendered.media[span.media])
            raise SensoriumError(f"{given} takes {len(medium.embeds)} tokens where {span.count} were laid out.")
        segments += [Segment(ids=tuple(ids)), Segment(embeds=medium.embeds, key=medium.key)]
        ids = []
    return [*segments, Segment(ids=tuple(ids))]
