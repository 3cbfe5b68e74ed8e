"""An answer spoken while it is generated: the engine's steps pass through, and sound comes out beside them.

`Spoken` takes the direct way (hidden states -> output projector -> units -> generator); `Cascade` takes the text's
(text -> the generator's own text front-end -> units -> generator). Both are given the same steps and give sound in the
same chunks, so they can stand beside each other under the same measures.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sensorium.errors import UsageError
from sensorium.generators.base import Samples, SpeechGenerator
from sensorium.generators.stream import SpeechStream
from sensorium.prompt import TEMPLATES

if TYPE_CHECKING:
    from sensorium.backbones.engine import Step
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.model import Model
    from sensorium.projectors.units import UnitProjector

LETTERS_A_UNIT = 0.9
"""Plain letters and spaces that a unit takes at least: of 20 sentences, none had 16 phonemes before its
15th letter or 24 before its 23rd."""
SENTENCE_END = re.compile(r"[.!?…][\"”’)\]]*\s")


@dataclass
class SpeechTimings:
    """Seconds: in the projector or the text front-end (`units_s`), in the generator, and from `started` to the first
    sound; `before_sound` is the first two by then."""

    units_s: float = 0.0
    generator_s: float = 0.0
    first_sound_s: float | None = None
    before_sound: tuple[float, float] = (0.0, 0.0)
    started: float = field(default_factory=time.perf_counter)


class _Speaker:
    """What both ways share: units go to the generator, sound goes to `sink`.

    Attributes:
        units: all units so far.
        timings: see `SpeechTimings`.
        states: whether the engine's steps must carry their hidden states.
    """

    states = False

    def __init__(self, generator: SpeechGenerator, sink: Callable[[Samples], None]) -> None:
        self.generator, self.sink = generator, sink
        self.units: list[int] = []
        self.timings = SpeechTimings()
        self._stream = SpeechStream(generator)

    def follow(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; each is passed on before it is spoken, so that text is never later than without speech."""
        for step in steps:
            yield step
            if step.finish != "stop":  # the stop token is no part of the answer
                self._say(self._timed(partial(self._step, step)))

    def finish(self) -> None:
        """Say the rest, once the last step has come."""
        self._say(self._timed(self._rest))
        self._emit(self._stream.flush)

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Behind each chunk that is sound by now, (units, samples) of the answer so far."""
        return self._stream.chunks

    def _timed(self, work: Callable[[], list[int]]) -> list[int]:
        began = time.perf_counter()
        units = work()
        self.timings.units_s += time.perf_counter() - began
        return units

    def _say(self, units: list[int]) -> None:
        if units:
            self.units += units
            self._emit(partial(self._stream.push, units))

    def _emit(self, make: Callable[[], Samples]) -> None:
        began = time.perf_counter()
        sound = make()
        self.timings.generator_s += time.perf_counter() - began
        if len(sound):
            if self.timings.first_sound_s is None:
                self.timings.first_sound_s = time.perf_counter() - self.timings.started
                self.timings.before_sound = self.timings.units_s, self.timings.generator_s
            self.sink(sound)

    def _step(self, step: Step) -> list[int]:
        raise NotImplementedError

    def _rest(self) -> list[int]:
        raise NotImplementedError


class Spoken(_Speaker):
    """The direct way.

    Args:
        projector: hidden states and tokens -> units.
        embed: the LLM's embedding of token ids, [n] -> float32 [n, dim].
        decode: the tokenizer's.
        end: the end-of-turn token.
        generator: units -> sound.
        sink: takes sound, float32 samples, as soon as there is some.
    """

    states = True

    def __init__(
        self,
        projector: UnitProjector,
        embed: Callable[[list[int]], Any],
        decode: Callable[[list[int]], str],
        end: int,
        generator: SpeechGenerator,
        sink: Callable[[Samples], None],
    ) -> None:
        super().__init__(generator, sink)
        self._embed, self._decode, self._end = embed, decode, end
        self._projected = projector.stream()
        self._letters, self._needed = 0, int(LETTERS_A_UNIT * getattr(generator, "first", 0))

    def _step(self, step: Step) -> list[int]:
        piece = self._decode([step.token])
        return self._projected.push(step.hidden, self._embed([step.token])[0], piece, wait=self._early(piece))

    def _early(self, piece: str) -> bool:
        """Whether nothing could be said yet: so few plain letters have fewer units than the first chunk needs."""
        self._letters += len(piece) if all(c.isalpha() or c in " '" for c in piece) else self._needed
        return self._letters < self._needed

    def _rest(self) -> list[int]:
        return self._projected.flush(self._embed([self._end])[0])


class Cascade(_Speaker):
    """The way through the text, a sentence at a time: a text front-end needs whole sentences.

    Args:
        tokenizer: of the LLM.
        generator, sink: as for `Spoken`; the generator must have a text front-end (`base.TextFront`).
    """

    def __init__(self, tokenizer: Tokenizer, generator: Any, sink: Callable[[Samples], None]) -> None:
        super().__init__(generator, sink)
        self._text = tokenizer.stream()
        self._waiting = ""

    def _step(self, step: Step) -> list[int]:
        self._waiting += self._text.push(step.token)
        found = list(SENTENCE_END.finditer(self._waiting))
        return self._front(found[-1].end()) if found else []

    def _rest(self) -> list[int]:
        self._waiting += self._text.flush()
        return self._front(len(self._waiting))

    def _front(self, count: int) -> list[int]:
        said, self._waiting = self._waiting[:count], self._waiting[count:]
        front: Any = self.generator
        units: list[int] = front.units_of(said)
        between = [front.space] if self.units else []
        return [*between, *units] if units else []


def speaker_of(model: Model, sink: Callable[[Samples], None], cascade: bool | None) -> Spoken | Cascade:
    """See `Model.speaker`."""
    parts = model.parts
    generator, tokenizer = parts.generator.get(), parts.tokenizer.get()
    output = None if cascade else parts.output.get()
    if output is None:
        if cascade is False:
            raise UsageError(f"the model {model.name!r} has no output projector for speech; let it speak its text.")
        return Cascade(tokenizer, generator, sink)
    end = tokenizer.special(TEMPLATES[model.composition.spec.backbone.template].end)
    # Of the engines, only one with new tokens has further rows in its table; a LoRA changes none.
    engine = parts.media if model.composition.spec.new_tokens else parts.bare
    return Spoken(output, engine.get().embed, tokenizer.decode, end, generator, sink)
