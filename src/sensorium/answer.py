"""What a model gives back: an answer that is a string and knows how it came about, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Usage:
    """Positions that the LLM handled. `media_tokens` is the part of `prompt_tokens` that media take; `cached_tokens`
    the part that
    an earlier call had already prefilled."""

    prompt_tokens: int = 0
    media_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds per stage; `tokens_per_s` is the decoding speed after the first token. `load_s` counts once per
    process."""

    load_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens_per_s: float = 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token: its text, id and natural-log probability, and the most probable tokens in its place."""

    token: str
    id: int
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Answer(str):
    """The model's reply: a `str` (it prints, compares and slices as its text) with the facts about it.

    Attributes:
        model: name of the composition.
        finish_reason: "stop" (the model ended, or a stop string came), "length" (max_tokens) or "cancelled".
        usage: token counts.
        timings: seconds per stage.
        logprobs: one entry per token when asked for, else None.
    """

    model: str
    finish_reason: str
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None

    def __new__(
        cls,
        text: str,
        *,
        model: str = "",
        finish_reason: str = "stop",
        usage: Usage = Usage(),
        timings: Timings = Timings(),
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> Answer:
        """Make an answer of its text and facts."""
        answer = super().__new__(cls, text)
        answer.model, answer.finish_reason, answer.usage, answer.timings = model, finish_reason, usage, timings
        answer.logprobs = None if logprobs is None else tuple(logprobs)
        return answer

    @property
    def text(self) -> str:
        """The reply as a plain `str`."""
        return str.__str__(self)

    def to_dict(self) -> dict[str, Any]:
        """The object that `sensorium ask --json` prints."""
        usage = {name: getattr(self.usage, name) for name in ("prompt_tokens", "media_tokens", "completion_tokens")}
        timings = {name: round(seconds, 4) for name, seconds in asdict(self.timings).items()}
        return {"answer": self.text, "model": self.model, "usage": usage, "timings": timings}


class Stream(Iterator[str]):
    """Pieces of an answer as they are generated; no piece splits a character. `answer` is there once the pieces are
    used up."""

    def __init__(self, pieces: Iterator[str | Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        piece = next(self._pieces)
        if isinstance(piece, Answer):
            self._answer = piece
            return next(self)
        return piece

    @property
    def answer(self) -> Answer:
        """The whole answer; generates what is left first."""
        for _ in self:
            pass
        if self._answer is None:
            raise RuntimeError("the stream was closed before its end, so there is no whole answer")
        return self._answer

    def close(self) -> None:
        """Stop generating."""
        close = getattr(self._pieces, "close", None)
        if close:
            close()


@dataclass(frozen=True)
class Scores:
    """Of K answers: `logprobs` float64 [K], log P(answer and end of turn | conversation), and `tokens` int [K]."""

    logprobs: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Log-probability per token, which does not favour short answers."""
        return self.logprobs / self.tokens


@dataclass
class StopText:
    """Ends a text at the first of several stop strings, which may span tokens.

    The end of the text that could be the beginning of a stop string is held back until it is clear that it is none.
    """

    stops: Sequence[str]
    stopped: bool = field(default=False, init=False)
    _held: str = field(default="", init=False)

    def push(self, text: str) -> str:
        """What may be shown after `text` has arrived. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        self._held += text
        # The stop string that ends first wins, so that the result does not depend on how the text was cut into pieces.
        found = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
