"""Messages -> spans: chat templates, where media stand, and which tokens are an answer.

One function, `render`, lays a conversation out. Inference turns its spans into embeddings; training takes its labels
from the same spans (`Rendered.labels`), so the two cannot disagree. What people type is tokenised with special tokens
disabled and media are placed by position: `<image>` or `<|im_start|>` in a message are just characters.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sensorium.errors import UsageError

IGNORE = -100
"""The label of a position that carries no loss, as torch's cross entropy has it."""

ROLES = ("system", "user", "assistant")


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
class Slot:
    """A medium whose features come from elsewhere: training places cached features with it."""

    kind: str = "image"


@dataclass(frozen=True, eq=False)
class Message:
    """One turn: a role and its content, texts and media in any order.

    Args:
        role: "system", "user" or "assistant".
        content: a text, or a sequence of texts and media (`sensorium.Image`, `Slot`). Media only in user messages.

    Raises:
        UsageError: the role is unknown, or the content cannot stand in it.
    """

    role: str
    content: Any
    texts: tuple[str, ...] = field(init=False, repr=False)
    media: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"message role {self.role!r} is unknown; use one of {', '.join(ROLES)}.")
        parts = (self.content,) if isinstance(self.content, str) else tuple(self.content)
        texts, media = tuple(p for p in parts if isinstance(p, str)), tuple(p for p in parts if not isinstance(p, str))
        if media and self.role != "user":
            raise UsageError(f"a {self.role} message holds a picture; pictures belong in user messages.")
        for text in texts:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError("the text is not valid Unicode (it holds a lone surrogate); pass it as UTF-8.")
        object.__setattr__(self, "content", parts)
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "media", media)

    @property
    def text(self) -> str:
        """All texts of the message, one per line."""
        return "\n".join(self.texts)


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
    """A chat template of the ChatML family: `<start>role\\ncontent<end>\\n`.

    Attributes:
        start, end: names of the special tokens around a turn.
        default_system: the system prompt that text-only conversations without one get; conversations with media get
            none (a shorter prefill, and the projectors are trained so).
    """

    start: str
    end: str
    default_system: str | None


TEMPLATES = {
    # SmolLM2-Instruct's own template, from its tokenizer_config.json.
    "chatml": Template(
        "<|im_start|>", "<|im_end|>", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
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

    Pictures stand before the text of their message, in the order given, each as its projected tokens followed by a
    newline.

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
    has_media = any(message.media for message in messages)
    turns = list(messages)
    if form.default_system and not has_media and turns[0].role != "system":
        turns.insert(0, Message("system", form.default_system))
    for turn in turns:
        answer = turn.role == "assistant"
        layout.special(turn.role, form.start)
        layout.text(turn.role, turn.role + "\n")
        for medium in turn.media:
            layout.medium(turn.role, medium)
            layout.text(turn.role, "\n")
        layout.text(turn.role, turn.text, target=answer)
        layout.special(turn.role, form.end, target=answer)
        layout.text(turn.role, "\n")
    if generate:
        layout.special("assistant", form.start)
        layout.text("assistant", "assistant\n")
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

    def special(self, role: str, name: str, target: bool = False) -> None:
        self.token(role, self._tokenizer.special(name), target)

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
            ids = tuple(self._tokenizer.encode(self._text))
            self._spans.append(Span(self._role, "text", ids, None, len(ids), self._target))
        self._text = ""


# OpenAI-style messages ------------------------------------------------------------------------------------------------

_ROLES_ALIKE = {"developer": "system"}
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image_url", "input_image", "image")


def parse_messages(
    messages: str | Iterable[Message | Mapping[str, Any]],
    *,
    local_files: bool = True,
    max_bytes: int = 64 * 1024 * 1024,
) -> list[Message]:
    """Accept messages as people write them: a text, `Message`s, or OpenAI-style dicts.

    A dict has "role" and "content"; the content is a text or a list of parts: {"type": "text", "text": ...},
    {"type": "image_url", "image_url": {"url": "data:image/...;base64,..."}} and {"type": "image", "image": X} where X
    is a path, bytes, a PIL image, an array or a `sensorium.Image`. Unknown fields are ignored.

    Args:
        messages: the conversation.
        local_files: whether "image" may name a file of this machine; a server passes False.
        max_bytes: limit on the encoded picture in a data URL, checked before it is decoded.

    Raises:
        UsageError: a message or part is malformed, of a kind that no part of a composition takes, or names a remote
            URL.
        SensoriumError: a picture cannot be decoded.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    if isinstance(messages, Mapping):
        raise UsageError("messages is a single dict; pass a list of messages.")
    parsed = [
        m if isinstance(m, Message) else _parse_message(i, m, local_files, max_bytes) for i, m in enumerate(messages)
    ]
    if not parsed:
        raise UsageError("the conversation is empty; give at least one message.")
    return parsed


def _parse_message(index: int, message: object, local_files: bool, max_bytes: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"{where} is no message; write {{'role': 'user', 'content': 'text'}}.")
    role = _ROLES_ALIKE.get(str(message["role"]), str(message["role"]))
    content = message.get("content")
    if content is None or isinstance(content, str):
        return Message(role, content or "")
    if not isinstance(content, (list, tuple)):
        raise UsageError(f"{where}: content is a {type(content).__name__}; write a text or a list of parts.")
    parts = [_parse_part(f"{where}.content[{i}]", part, local_files, max_bytes) for i, part in enumerate(content)]
    return Message(role, parts)


def _parse_part(where: str, part: object, local_files: bool, max_bytes: int) -> Any:
    from sensorium import media

    if isinstance(part, (str, Slot, media.Image)):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise UsageError(f"{where} is no content part; write {{'type': 'text', 'text': ...}}.")
    if kind in _TEXT_TYPES:
        if not isinstance(part.get("text"), str):
            raise UsageError(f"{where}: a text part needs 'text', a string.")
        return part["text"]
    if kind not in _IMAGE_TYPES:
        raise UsageError(f"{where}: parts of type {kind!r} are not taken; use 'text', 'image_url' or 'image'.")
    if kind == "image":
        source = part.get("image")
        if source is None:
            raise UsageError(f"{where}: an image part needs 'image', a path, bytes, a PIL image or an array.")
        if isinstance(source, str) and source.startswith("data:"):
            return media.load_image(decode_data_url(source, max_bytes))
        if isinstance(source, str):
            refuse_remote(source)
        if not local_files and not isinstance(source, bytes):
            raise UsageError(f"{where}: files of this machine are not read here; send the picture as a data: URL.")
        return media.load_image(source)
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str):
        raise UsageError(f"{where}: an {kind} part needs a data: URL.")
    return media.load_image(decode_data_url(url, max_bytes))


def refuse_remote(source: str) -> None:
    """Raise UsageError for http(s), ftp and the like: nothing is fetched because a message or a flag names it."""
    scheme, separator, _ = source.partition("://")
    if separator and scheme.isalnum():
        shown = source if len(source) <= 60 else source[:57] + "..."
        raise UsageError(f"{shown} is a remote address, which is never fetched; download the file and pass it instead.")


def decode_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of a base64 `data:` URL of at most `max_bytes`. Raises UsageError for any other URL."""
    refuse_remote(url)
    head, comma, payload = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise UsageError(
            "an image URL must be a data: URL in base64, such as data:image/jpeg;base64,...; nothing else is read."
        )
    if len(payload) * 3 // 4 > max_bytes:
        raise UsageError(f"the picture in a data: URL has more than {max_bytes // 1024 // 1024} MiB; make it smaller.")
    try:
        return base64.b64decode(payload.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise UsageError("the base64 in a data: URL is malformed; encode the picture again.") from None
