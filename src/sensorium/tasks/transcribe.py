"""Speech to text with the time of every word: faster-whisper over a stream, so that memory stays flat.

Sound is read in sections of about two minutes that end in a pause. Of each, a voice activity detector keeps what is
speech, Whisper transcribes that, and its times are set back to those of the file. Two gates keep out what nobody said:
silence never reaches Whisper, and windows that it holds for silence itself are dropped (Radford et al. 2022, section
4.5: no-speech probability over 0.6 at a log-probability below -1; a compression ratio over 2.4 is a loop).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorium.backbones.threads import physical_cores
from sensorium.encoders.whisper import need
from sensorium.encoders.whisper_parts import PARTS, fetch_whisper
from sensorium.errors import SensoriumError, UsageError
from sensorium.media.audio import RATE, AudioSource, open_audio
from sensorium.media.limits import DEFAULT, Limits

_SECTION = 120 * RATE
_LAST_RESORT = 10 * RATE  # of a section without a pause, where its quietest moment is looked for
_QUIET = RATE // 20
_PADDING = 3 * RATE // 10  # that is kept on either side of speech
_DETECTOR = {"threshold": 0.5, "min_silence_duration_ms": 1000, "speech_pad_ms": 1000 * _PADDING // RATE}
_GATES = {"no_speech_threshold": 0.6, "log_prob_threshold": -1.0, "compression_ratio_threshold": 2.4}

Span = tuple[int, int]
"""First sample and the one behind the last."""


@dataclass(frozen=True)
class Word:
    """A word as it was heard: its text with its punctuation, seconds, and Whisper's probability of it."""

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """Some words in a row, about a sentence."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """Its words, a space between them."""
        return " ".join(word.text for word in self.words)

    @property
    def start(self) -> float:
        """Seconds at which its first word begins."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Seconds at which its last word ends."""
        return max(word.end for word in self.words)

    def to_dict(self, *, words: bool) -> dict[str, Any]:
        """As plain values, for JSON."""
        made: dict[str, Any] = {"start_s": round(self.start, 3), "end_s": round(self.end, 3), "text": self.text}
        if words:
            made["words"] = [
                {
                    "word": word.text,
                    "start_s": round(word.start, 3),
                    "end_s": round(word.end, 3),
                    "probability": round(word.probability, 3),
                }
                for word in self.words
            ]
        return made


class Transcriber:
    """Whisper, loaded once.

    Args:
        size: "tiny.en" (English, 75 MB) or "base" (99 languages, 145 MB).
        language: a code such as "de"; None takes English for tiny.en, and for base what the first speech sounds like.
        threads: None for one a core.
        compute: the arithmetic of CTranslate2: "int8" or "float32".
        progress: show a bar while the model is fetched.

    Attributes:
        language: of what was transcribed; None before the first speech, where it is to be found out.
        seconds: read so far.

    Raises:
        UsageError: the size or language is unknown, or the model does not know the language.
        SensoriumError: the model cannot be fetched or loaded.
    """

    def __init__(
        self,
        size: str = "tiny.en",
        language: str | None = None,
        *,
        threads: int | None = None,
        compute: str = "int8",
        progress: bool = True,
    ) -> None:
        if size not in PARTS:
            raise UsageError(f"Whisper {size!r} is unknown; use one of {', '.join(PARTS)}.")
        need("av")
        whisper = need("faster_whisper")
        if language is not None and language not in whisper.tokenizer._LANGUAGE_CODES:
            raise UsageError(f"the language {language!r} is unknown; give a code such as en, de or ja.")
        if size.endswith(".en") and language not in (None, "en"):
            raise UsageError(f"Whisper {size} knows English alone, not {language!r}; use base.")
        files = {name: path.read_bytes() for name, path in fetch_whisper(size, progress=progress).items()}
        try:
            self._model = whisper.WhisperModel(
                f"whisper-{size}",
                device="cpu",
                compute_type=compute,
                cpu_threads=threads or physical_cores(),
                files=files,
            )
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            raise SensoriumError(f"Whisper {size} cannot be loaded ({reason}); delete it from the cache.") from None
        self.language = "en" if size.endswith(".en") else language
        self.seconds = 0.0

    def segments(self, pieces: Iterable[np.ndarray]) -> Iterator[Segment]:
        """The speech in a stream of mono samples at 16 kHz, float32 [n] each, as soon as a section is transcribed."""
        for offset, samples, spans in sections(pieces):
            yield from self._section(offset, samples, spans)
            self.seconds = (offset + len(samples)) / RATE

    def text(self, samples: np.ndarray) -> str:
        """What is said in mono sound at 16 kHz that holds speech, float32 [n], without times: the fastest way."""
        found, _ = self._model.transcribe(
            samples, language=self.language, beam_size=1, without_timestamps=True, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in found)

    def _section(self, offset: int, samples: np.ndarray, spans: list[Span]) -> Iterator[Segment]:
        if not spans:
            return
        need("ctranslate2").set_random_seed(0)  # for the second tries, which are sampled
        found, info = self._model.transcribe(
            np.concatenate([samples[begin:end] for begin, end in spans]),
            language=self.language,
            word_timestamps=True,
            condition_on_previous_text=False,  # a loop must not go on from window to window
            hallucination_silence_threshold=2.0,
            **_GATES,
        )
        self.language = info.language
        begun: set[int] = set()
        for segment in found:
            words = [set_back(word, spans, offset, begun) for word in joined(segment.words or ())]
            if any(character.isalnum() for word in words for character in word.text):
                yield Segment(tuple(words))


def transcribe(
    source: AudioSource,
    transcriber: Transcriber,
    *,
    limits: Limits = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Segment]:
    """The speech in a file of sound or a video, segment by segment; ``progress`` is given (seconds done, of all).

    Raises:
        SensoriumError: the file cannot be read.
    """
    with open_audio(source, limits) as stream:
        tell = progress or (lambda done, total: None)

        def told() -> Iterator[np.ndarray]:
            tell(0, round(stream.declared))
            yield from stream.pieces
            tell(round(stream.declared), round(stream.declared))

        for segment in transcriber.segments(told()):
            tell(round(segment.end), round(max(stream.declared, segment.end)))
            yield segment


# Sections and their times
# ----------------------------------------------------------------------------------------------------------------------


def sections(
    pieces: Iterable[np.ndarray], detect: Callable[[np.ndarray], list[Span]] | None = None, size: int = _SECTION
) -> Iterator[tuple[int, np.ndarray, list[Span]]]:
    """(its place in the stream, samples, the spans of them that are speech) of sections that end in a pause.

    Without a gap and without overlap; only where somebody speaks for the whole of ``size`` samples without pausing,
    the section ends at the quietest moment of its last seconds.
    """
    detect = detect or _speech
    offset, held, count = 0, [], 0
    for piece in (part for whole in pieces for part in np.split(whole, range(size, len(whole), size))):
        held.append(piece)
        count += len(piece)
        while count >= size:
            samples = np.concatenate(held)
            spans = detect(samples)
            cut = _cut(samples, spans)
            yield offset, samples[:cut], [(begin, min(end, cut)) for begin, end in spans if begin < cut]
            offset, held, count = offset + cut, [samples[cut:]], count - cut
    if count:
        samples = np.concatenate(held)
        yield offset, samples, detect(samples)


def _cut(samples: np.ndarray, spans: list[Span]) -> int:
    """Where a section ends: the middle of its last pause, but not in its first half."""
    if not spans or spans[-1][1] < len(samples) - _QUIET:
        return len(samples)
    for (_, before), (after, _) in zip(spans[-2::-1], spans[:0:-1]):
        if (before + after) // 2 >= len(samples) // 2:
            return (before + after) // 2
    tail = samples[-min(_LAST_RESORT, len(samples) // 2) :]
    loudness = np.square(tail[: len(tail) // _QUIET * _QUIET]).reshape(-1, _QUIET).sum(axis=1)
    if not len(loudness):
        return len(samples)
    return len(samples) - len(tail) + int(loudness.argmin()) * _QUIET + _QUIET // 2


def _speech(samples: np.ndarray) -> list[Span]:
    vad = need("faster_whisper.vad")
    found = vad.get_speech_timestamps(samples, vad.VadOptions(**_DETECTOR))
    return [(int(span["start"]), int(span["end"])) for span in found]


def joined(words: Iterable[Any]) -> list[Word]:
    """Whisper's words, with those that begin without a space joined to the one before ("well" "-known")."""
    found: list[Word] = []
    for word in words:
        text = word.word.strip()
        if not text:
            continue
        if found and not word.word[0].isspace():
            last = found[-1]
            probability = min(last.probability, word.probability)
            found[-1] = Word(last.text + text, last.start, max(last.end, word.end), probability)
        else:
            found.append(Word(text, word.start, max(word.start, word.end), word.probability))
    return found


def set_back(word: Word, spans: list[Span], offset: int, begun: set[int]) -> Word:
    """A word timed in the joined spans, timed in the stream. Its middle decides to which span it belongs.

    The first word of a span begins where the detector heard speech begin, which it knows better than Whisper. ``begun``
    holds the spans of which a word is known.
    """
    middle = (word.start + word.end) / 2 * RATE
    passed, number = 0, 0
    while number < len(spans) - 1 and middle >= passed + spans[number][1] - spans[number][0]:
        passed += spans[number][1] - spans[number][0]
        number += 1
    begin, end = spans[number]
    start, stop = (min(max(begin, time * RATE - passed + begin), end) for time in (word.start, word.end))
    heard = begin + _PADDING
    if number not in begun and begin > 0 and abs(start - heard) < RATE:
        start, stop = heard, max(heard, stop)
    begun.add(number)
    return Word(word.text, float(offset + start) / RATE, float(offset + stop) / RATE, float(word.probability))
