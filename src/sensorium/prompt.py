"""Messages -> spans: chat templates, where media stand, and which tokens are an answer.

One function, `render`, lays a conversation out. Inference turns its spans into embeddings; training takes its labels
from the same spans (`Rendered.labels`), so the two cannot disagree. What people type is tokenised with special tokens
disabled and media are placed by position: `<image>` or `<|im_start|>` in a message are just characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sensorium.errors import SensoriumError, UsageError
from sensorium.messages import Message, Slot, kind_of, parse_messages

__all__ = [
    "IGNORE",
    "TEMPLATES",
    "Message",
    "Rendered",
    "Slot",
    "Span",
    "Template",
    "Tokens",
    "parse_messages",
    "render",
]

IGNORE = -100
"""The label of a position that carries no loss, as torch's cross entropy has it."""


class Tokens(Protocol):
    """What `render` asks of a tokenizer (`sensorium.backbones.tokenizer.Tokenizer`)."""

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; special tokens in it stay plain text."""

    def special(self, name: str) -> int:
        """The id of one special token, such as `<|im_end|>`."""

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-text token."""


@dataclass(frozen=True)
class Span:
    """A run of positions that belong together.

    Attributes:
        role: whose turn it is.
        kind: "special" (template markers), "text" or "media".
        ids: the tokens; empty for media.
        media: index into `Rendered.media`, for media.
        count: positions taken: `len(ids)`, or the projected tokens of the medium.
        target: the span is part of an answer, so training learns it.
    """

    role: str
    kind: Literal["special", "text", "media"]
    ids: tuple[int, ...]
    media: int | None
    count: int
    target: bool


@dataclass(frozen=True)
class Rendered:
    """A conversation laid out as spans."""

    spans: tuple[Span, ...]
    media: tuple[Any, ...]

    @property
    def length(self) -> int:
        """Positions in all."""
        return sum(span.count for span in self.spans)

    @property
    def media_tokens(self) -> int:
        """Positions that media take."""
        return sum(span.count for span in self.spans if span.kind == "media")

    def ids(self, placeholder: int = 0) -> list[int]:
        """One id per position; `placeholder` where media stand."""
        return [i for span in self.spans for i in (span.ids if span.media is None else (placeholder,) * span.count)]

    def labels(self) -> list[int]:
        """One label per position: the id where it is part of an answer, `IGNORE` elsewhere.

        Raises:
            UsageError: no position is a target, so there would be nothing to learn.
        """
        if not any(span.target for span in self.spans):
            raise UsageError("the sample has no assistant message, so there is nothing to learn from it.")
        return [i for span in self.spans for i in (span.ids if span.target else (IGNORE,) * span.count)]

    def media_positions(self) -> list[tuple[int, int]]:
        """(start, end) of each medium, in the order of `media`."""
        positions, at = [], 0
        for span in self.spans:
            if span.kind == "media":
                positions.append((at, at + span.count))
            at += span.count
        return positions


@dataclass(frozen=True)
class Template:
    """A chat template that encloses each turn: `<start>role\\ncontent<end>\\n`.

    Attributes:
        start, end: names of the special tokens around a turn; "" for none. Then the token that ends a text stands
            behind answers.
        default_system: the system prompt that text-only conversations without one get; conversations with media get
            none (a shorter prefill, and the projectors are trained so).
        user, assistant: what the template calls these roles.
        system_turn: whether a system message is a turn; else it stands at the beginning of the user's next turn.
        trims: whether the white space around a message goes.
    """

    start: str
    end: str
    default_system: str | None
    user: str = "user"
    assistant: str = "assistant"
    system_turn: bool = True
    trims: bool = False

    def named(self, role: str) -> str:
        """What the template calls a role."""
        return {"user": self.user, "assistant": self.assistant}.get(role, role)

    def end_id(self, tokenizer: Tokens) -> int:
        """The token that ends an answer. Raises SensoriumError when the tokenizer has none."""
        if self.end:
            return tokenizer.special(self.end)
        token = getattr(tokenizer, "eos_id", None)
        if token is None:
            raise SensoriumError("The tokenizer has no token that ends a text; choose another chat template.")
        return int(token)

    def turns(self, messages: Sequence[Message], has_media: bool) -> list[tuple[Message, str, list[Any]]]:
        """Each turn with what stands before its own words, and those words (see `_words`)."""
        told = list(messages)
        if self.default_system and not has_media and told[0].role != "system":
            told.insert(0, Message("system", self.default_system))
        turns: list[tuple[Message, str, list[Any]]] = []
        said = ""
        for message in told:
            if message.role == "system" and not self.system_turn:
                said += message.text + "\n\n"
                continue
            before, said = (said, "") if message.role == "user" else ("", said)
            turns.append((message, before, _words(message, self.trims)))
        if said:  # a system message that no user's turn follows
            turns.append((Message("user", ""), said, []))
        return turns


def _words(message: Message, trims: bool) -> list[Any]:
    """Texts and speech of a message in the order given, a line each; with `trims` without white space around them."""
    lines: list[Any] = []
    for part in message.content:
        if isinstance(part, str) or kind_of(part) == "speech":
            lines += ["\n", part] if lines else [part]
    if trims and all(isinstance(line, str) for line in lines):
        return ["".join(lines).strip()]
    if trims:
        lines[0] = lines[0].lstrip() if isinstance(lines[0], str) else lines[0]
        lines[-1] = lines[-1].rstrip() if isinstance(lines[-1], str) else lines[-1]
    return lines


TEMPLATES = {
    # SmolLM2-Instruct's own template, from its tokenizer_config.json.
    "chatml": Template(
        "<|im_start|>", "<|im_end|>", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
    # Gemma 3's own template (tests/data/gemma3_chat_template.jinja).
    "gemma": Template("<start_of_turn>", "<end_of_turn>", None, assistant="model", system_turn=False, trims=True),
    # For pre-trained models, which know no turns: Gemma 3 270M gives <end_of_turn> a probability of e^-37.
    "plain": Template("", "", None, user="Question:", assistant="Answer:", system_turn=False, trims=True),
}


def render(
    messages: Sequence[Message],
    tokenizer: Tokens,
    count: Callable[[Any], int] | int = 0,
    *,
    template: str = "chatml",
    generate: bool = True,
) -> Rendered:
    """Lay a conversation out.

    Pictures stand before the words of their message, in the order given, each as its projected tokens followed by a
    newline. Speech stands where words stand: alone where nothing was written, else a line of its own.

    Args:
        messages: the turns, oldest first; at least one.
        tokenizer: the backbone's.
        count: the tokens of a medium (`projectors.spec.tokens_for`), a number or a function of the medium.
        template: a key of `TEMPLATES`.
        generate: end with the opening of an assistant turn, for inference. Training passes False.

    Raises:
        UsageError: no messages, or an unknown template.
    """
    if not messages:
        raise UsageError("the conversation is empty; give at least one message.")
    if template not in TEMPLATES:
        raise UsageError(f"chat template {template!r} is unknown; known templates: {', '.join(TEMPLATES)}.")
    form = TEMPLATES[template]
    layout = _Layout(tokenizer, count)
    if getattr(tokenizer, "add_bos", False) and tokenizer.bos_id is not None:
        layout.token("system", tokenizer.bos_id)
    for turn, before, words in form.turns(messages, any(message.media for message in messages)):
        answer = turn.role == "assistant"
        layout.special(turn.role, form.start)
        layout.text(turn.role, form.named(turn.role) + "\n")
        layout.text(turn.role, before)
        for picture in (medium for medium in turn.media if kind_of(medium) != "speech"):
            layout.medium(turn.role, picture)
            layout.text(turn.role, "\n")
        for word in words:
            if isinstance(word, str):
                layout.text(turn.role, word, target=answer)
            else:
                layout.medium(turn.role, word)
        if answer or form.end:
            layout.token(turn.role, form.end_id(tokenizer), target=answer)
        layout.text(turn.role, "\n")
    if generate:
        layout.special("assistant", form.start)
        layout.text("assistant", form.assistant + "\n")
    return layout.done()


class _Layout:
    """Collects spans. Neighbouring texts are tokenised as one, as the reference template does; an answer is never
    joined to
    what stands before it, because at inference the prompt ends there."""

    def __init__(self, tokenizer: Tokens, count: Callable[[Any], int] | int) -> None:
        self._tokenizer, self._count = tokenizer, count
        self._spans: list[Span] = []
        self._media: list[Any] = []
        self._text, self._role, self._target = "", "", False

    def text(self, role: str, text: str, target: bool = False) -> None:
        if target != self._target:
            self._flush()
        self._text, self._role, self._target = self._text + text, role, target

    def special(self, role: str, name: str) -> None:
        if name:
            self.token(role, self._tokenizer.special(name))

    def token(self, role: str, token: int, target: bool = False) -> None:
        self._flush()
        self._spans.append(Span(role, "special", (token,), None, 1, target))

    def medium(self, role: str, medium: Any) -> None:
        self._flush()
        count = self._count(medium) if callable(self._count) else self._count
        self._spans.append(Span(role, "media", (), len(self._media), count, False))
        self._media.append(medium)

    def done(self) -> Rendered:
        self._flush()
        return Rendered(tuple(self._spans), tuple(self._media))

    def _flush(self) -> None:
        if self._text:
            encode = self._tokenizer.encode
            if self._target:  # an answer may hold tokens that training added (`backbones.new_tokens`)
                encode = getattr(self._tokenizer, "encode_answer", encode)
            ids = tuple(encode(self._text))
            self._spans.append(Span(self._role, "text", ids, None, len(ids), self._target))
        self._text = ""
