"""The composed model: messages -> embeddings -> tokens -> text, and speech. The heart of Sensorium.

messages --perception.py--> segments --engine--> tokens --detokeniser--> pieces of text
                                               --speech.py--> sound
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from sensorium.answer import Answer, Scores, StopText, Stream, Timings, TokenLogprob, Usage
from sensorium.arguments import check_model, check_names, check_threads, several, stop_strings
from sensorium.composition import Composition
from sensorium.errors import UsageError
from sensorium.loading import Parts
from sensorium.media import load_image
from sensorium.messages import Message, parse_messages
from sensorium.perception import Perceived, Perception, Prepared, check_kinds
from sensorium.prompt import TEMPLATES

if TYPE_CHECKING:
    from pathlib import Path

    from sensorium.backbones.engine import SamplingParams, Stats, Step
    from sensorium.media import Limits
    from sensorium.speech import Cascade, Spoken
    from sensorium.tasks.listen import Reply
    from sensorium.two_tower import TwoTower

Messages = str | Iterable[Message | Mapping[str, Any]]


class Model:
    """A composition that runs.

    Args:
        composition: what to run; see `sensorium.load`.
        threads: threads of each part, `None` for one per physical core.
        progress: whether downloads and preparations are reported on standard error.

    Raises:
        SensoriumError: parts do not fit each other, are damaged or cannot be fetched; one sentence says which.
    """

    def __init__(self, composition: Composition, threads: int | None = None, progress: bool = True) -> None:
        check_threads(threads)
        self.composition = composition
        self.parts = Parts(composition, threads, progress)
        self._perception = Perception(self.parts)
        self._started: float | None = None
        self._loaded = False
        self._load_s = 0.0

    @property
    def name(self) -> str:
        """The composition's name."""
        return self.composition.name

    def start(self, media: Collection[str] | None = None) -> Model:
        """Fetch the parts, and begin to load in threads what a conversation with such kinds of media ("image",
        "speech", or none) needs."""
        check_kinds(self.composition, media or ())
        self._started = self._started or time.perf_counter()
        self.parts.fetch(media or ())
        if media is not None:
            self.parts.start(media)
        return self

    def load(self) -> Model:
        """Check every seam and digest, once. Raises SensoriumError or UsageError with one sentence."""
        if not self._loaded:
            self.start()
            self.parts.check()
            self._loaded = True
            self._load_s = time.perf_counter() - (self._started or 0.0)
        return self

    # Conversations ----------------------------------------------------------------------------------------------------

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = False, **options: Any) -> Answer: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **options: Any) -> Stream: ...
    @overload
    def chat(self, messages: Messages, *, stream: bool, **options: Any) -> Answer | Stream: ...
    def chat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        cancel: threading.Event | None = None,
        speaker: Spoken | Cascade | None = None,
        **sampling: Any,
    ) -> Answer | Stream:
        """Continue a conversation.

        Args:
            messages: a text, `Message`s or OpenAI-style dicts (`messages.parse_messages`).
            stream: give a `Stream` of text pieces instead of the whole `Answer`.
            stop: strings that end the answer; they are not part of it.
            cancel: set it from another thread to end the answer early.
            speaker: says the answer while it is generated; see `speaker`.
            **sampling: fields of `backbones.engine.SamplingParams`: max_tokens, temperature (0 = greedy), top_k, top_p,
                min_p, repetition_penalty, seed, logprobs.

        Raises:
            UsageError: the messages or options are malformed, or the conversation is longer than the backbone's
                context.
            SensoriumError: a picture or sound cannot be read.
        """
        from sensorium.backbones.engine import Stats

        stops = stop_strings(stop)
        params = self._params(sampling)
        prepared = self.prepare(parse_messages(messages))
        stats = Stats()
        hidden = speaker is not None and speaker.states
        steps = prepared.engine.generate(prepared.segments, params, cancel, stats, hidden)
        if speaker:
            steps = speaker.follow(steps)
        pieces = Stream(self._pieces(prepared, steps, stats, stops, params.logprobs > 0, speaker))
        return pieces if stream else pieces.answer

    def ask(
        self, text: str | None = None, image: Any = None, images: Any = (), *, audio: Any = None, **options: Any
    ) -> Any:
        """Answer one question, written or spoken, about pictures if there are any.

        Args:
            text: the question; None where it is spoken.
            image, images: paths, bytes, PIL images, uint8 arrays [H, W, 3] or `sensorium.Image`; one or a list.
            audio: paths, bytes or `sensorium.Audio`; one or a list.
            **options: as for `chat`; `stream=True` gives a `Stream`, else an `Answer`.
        """
        from sensorium.tasks.ask import question

        pictures = ([] if image is None else [image]) + several(images)
        return self.chat(question(text, pictures, audio, self.hearing), **options)

    def listen(self, audio: Any, **options: Any) -> Reply:
        """Answer a spoken question in text and speech; see `tasks.listen`."""
        from sensorium.tasks.listen import listen

        return listen(self, audio, **options)

    def describe(self, image: Any, **options: Any) -> Any:
        """A caption of one picture; see `tasks.describe`."""
        from sensorium.tasks.describe import describe

        return describe(self, image, **options)

    def classify(self, image: Any, labels: Sequence[str], **options: Any) -> list[tuple[str, float]]:
        """Probabilities of labels, highest first, that sum to 1; see `tasks.classify`."""
        from sensorium.tasks.classify import classify
        from sensorium.tasks.clip import classify_clip

        head = options.pop("head", "llm")
        if head == "clip":
            check_names(options, classify_clip)
            return classify_clip(self.two_tower, image, labels, **options)
        if head != "llm":
            raise UsageError('the head is unknown; use "llm" or "clip".')
        check_names(options, classify)
        return classify(self, image, labels, **options)

    def embed(self, image: Any = None, *, text: str | None = None, head: str | None = None) -> np.ndarray:
        """The vector of one picture or one text, of length 1.

        Args:
            image: anything that `load_image` takes.
            text: a text; its vector lies in the space of the two-tower model.
            head: None gives the encoder's own features of a picture, averaged, float32 [feature dim]; "clip" the
                two-tower model's, float32 [384], which can be compared with texts.

        Raises:
            UsageError: both were given or neither, or there is no such head.
        """
        if head not in (None, "clip"):
            raise UsageError(f'the head is {head!r}; use "clip", or None for the features of the encoder.')
        if head == "clip" or text is not None or image is None:
            return self.two_tower.embed(image, text=text)
        pooled = self.perceive(load_image(image)).pooled
        return pooled / max(float(np.linalg.norm(pooled)), 1e-12)

    @cached_property
    def two_tower(self) -> TwoTower:
        """The two-tower model that ships beside the generative ones."""
        from sensorium.two_tower import TwoTower

        return TwoTower(threads=self.parts.threads, progress=self.parts.progress)

    def speaker(self, sink: Callable[[np.ndarray], None], *, cascade: bool | None = None) -> Spoken | Cascade:
        """What says an answer while it is generated (`chat(..., speaker=...)`), once.

        Args:
            sink: takes sound, float32 [samples] at `speaker.generator.rate`, as soon as there is some.
            cascade: speak the text, or (False) the hidden states through the output projector; None for the projector
                where the composition has one.

        Raises:
            UsageError: `cascade` is False, and there is no output projector.
            SensoriumError: the generator cannot be loaded, or does not fit.
        """
        from sensorium.speech import speaker_of

        return speaker_of(self, sink, cascade)

    # The path from messages to tokens ---------------------------------------------------------------------------------

    def prepare(self, messages: Sequence[Message], *, blind: bool = False) -> Prepared:
        """What the engine reads of a conversation; see `Perception.prepare`."""
        prepared = self._perception.prepare(messages, blind=blind)
        self._load_s += prepared.load_s
        return prepared

    def perceive(self, medium: Any, features: np.ndarray | None = None) -> Perceived:
        """What the LLM reads of a picture or a sound; see `Perception.perceive`."""
        return self._perception.perceive(medium, features)

    def hearing(self) -> Limits:
        """The limits of sound that the model hears; see `Perception.hearing`."""
        return self._perception.hearing()

    def score(self, messages: Sequence[Message], choices: Sequence[str], *, blind: bool = False) -> Scores:
        """How probable whole answers are, from one prefill.

        Args:
            messages: the conversation before the answer.
            choices: the answers to score.
            blind: leave the media out and change nothing else: what the answers get without having seen anything.
        """
        prepared = self.prepare(messages, blind=blind)
        tokenizer = prepared.tokenizer
        end = TEMPLATES[self.composition.spec.backbone.template].end_id(tokenizer)
        ids = [[*tokenizer.encode_answer(choice), end] for choice in choices]
        return Scores(prepared.engine.score(prepared.segments, ids), np.array([len(i) for i in ids]))

    def _params(self, sampling: dict[str, Any]) -> SamplingParams:
        from sensorium.backbones.engine import SamplingParams

        check_names(sampling, SamplingParams, ("stop", "stream", "cancel"))
        return SamplingParams(**{"stop_ids": self.parts.tokenizer.get().eos_ids, **sampling})

    def _pieces(
        self,
        prepared: Prepared,
        steps: Iterator[Step],
        stats: Stats,
        stops: Sequence[str],
        logprobs: bool,
        speaker: Spoken | Cascade | None = None,
    ) -> Iterator[str | Answer]:
        """Pieces of text as the engine's steps arrive, then the whole Answer."""
        tokenizer = prepared.tokenizer
        text, stopper, shown = tokenizer.stream(), StopText(stops), ""
        finish, reported = "cancelled", []  # no step at all means that it was cancelled before the first
        for step in steps:
            finish = step.finish or finish
            if logprobs:
                top = tuple((tokenizer.decode([token]), value) for token, value in step.top)
                reported.append(TokenLogprob(tokenizer.decode([step.token]), step.token, step.logprob, top))
            piece = stopper.push(text.push(step.token))
            if step.finish and not stopper.stopped:
                piece += stopper.push(text.flush())
                piece += stopper.flush()
            if piece:
                shown += piece
                yield piece
            if stopper.stopped:
                finish = "stop"
                break
        if speaker:
            speaker.finish()
        rendered = prepared.rendered
        usage = Usage(rendered.length, rendered.media_tokens, stats.generated_tokens, stats.cached_tokens)
        timings = Timings(self._load_s, prepared.encode_s, stats.prefill_s, stats.decode_s, stats.tokens_per_s)
        yield Answer(
            shown,
            model=self.name,
            finish_reason=finish,
            usage=usage,
            timings=timings,
            logprobs=reported if logprobs else None,
        )


def load(model: str | Path = "mini", *, threads: int | None = None, progress: bool = True) -> Model:
    """Load a composition by name ("mini", which ships with the package) or directory.

    Frozen parts are fetched on first use, verified and cached; every seam is checked.

    Raises:
        UsageError: there is no such composition, or its file is malformed.
        SensoriumError: a part cannot be fetched, is damaged, or does not fit the others.
    """
    check_model(model)
    return Model(Composition.find(model), threads, progress).load()
