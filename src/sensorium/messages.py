"""Conversations as people write them: `Message`, and OpenAI-style dicts parsed into it.

Everything that comes from outside passes here, so this is also where remote addresses, foreign files and oversized data
URLs are refused: nothing is ever fetched because a message names it.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sensorium.arguments import shown
from sensorium.errors import UsageError

ROLES = ("system", "user", "assistant")
NOUNS = {"image": "a picture", "speech": "speech"}
"""What a medium of each kind is called."""


@dataclass(frozen=True)
class Slot:
    """A medium whose features come from elsewhere: training places cached features with it. `kind` is "image" or
    "speech", as that of any medium."""

    kind: str = "image"


@dataclass(frozen=True, eq=False)
class Message:
    """One turn: a role and its content, texts and media in any order.

    Args:
        role: "system", "user" or "assistant".
        content: a text, or a sequence of texts and media (`sensorium.Image`, `sensorium.Audio`, `Slot`). Media only in
            user messages.

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
        parts = (self.content,) if isinstance(self.content, str) else _parts(self.content)
        texts, media = tuple(p for p in parts if isinstance(p, str)), tuple(p for p in parts if not isinstance(p, str))
        if media and self.role != "user":
            held = named(media[0])
            raise UsageError(f"{held} stands in a message of the role {self.role!r}; media belong in user messages.")
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


def kind_of(medium: object) -> str:
    """The kind of a medium: "image" or "speech", which is also the name of the encoder and projector that take it."""
    return str(getattr(medium, "kind", "image"))


def named(medium: object) -> str:
    """What a medium is called in messages to people."""
    return NOUNS.get(kind_of(medium), "a medium")


def _parts(content: object) -> tuple[Any, ...]:
    """The parts of a content that is no text. What is clearly neither text nor medium is refused here, by name."""
    if isinstance(content, (bytes, bytearray, Mapping)) or not isinstance(content, Iterable):
        raise UsageError(f"the content of a message is {shown(content)}; give a text, or a list of texts and media.")
    parts = tuple(content)
    for part in parts:
        if part is None or isinstance(part, (bytes, bytearray, int, float, Mapping, os.PathLike)):
            raise UsageError(
                f"a message holds {shown(part)}; give texts, pictures as sensorium.load_image returns them, and sound "
                "as sensorium.load_audio does."
            )
    return parts


_ROLES_ALIKE = {"developer": "system"}
_TEXT_TYPES = ("text", "input_text", "output_text")
_URL_TYPES = {"image_url": "picture", "input_image": "picture", "audio_url": "sound"}
_EXAMPLES = {"picture": "image/jpeg", "sound": "audio/wav"}


def parse_messages(
    messages: str | Iterable[Message | Mapping[str, Any]],
    *,
    local_files: bool = True,
    max_bytes: int = 64 * 1024 * 1024,
) -> list[Message]:
    """Accept messages as people write them: a text, `Message`s, or OpenAI-style dicts.

    A dict has "role" and "content"; the content is a text or a list of parts:

        {"type": "text", "text": ...}
        {"type": "image_url", "image_url": {"url": "data:image/...;base64,..."}}
        {"type": "image", "image": X}    X: a path, bytes, a PIL image, an array or a `sensorium.Image`
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}
        {"type": "audio_url", "audio_url": {"url": "data:audio/...;base64,..."}}
        {"type": "audio", "audio": X}    X: a path, bytes or a `sensorium.Audio`; or an array, with its "rate" beside it

    The content decides the format of a medium, so "format" is not looked at. Unknown fields are ignored.

    Args:
        messages: the conversation.
        local_files: whether "image" and "audio" may name a file of this machine; a server passes False.
        max_bytes: limit on an encoded medium in base64, checked before it is decoded.

    Raises:
        UsageError: a message or part is malformed, of a kind that no part of a composition takes, or names a remote
            URL.
        SensoriumError: a picture or sound cannot be decoded.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    if isinstance(messages, (Mapping, Message)):
        kind = "dict" if isinstance(messages, Mapping) else "Message"
        raise UsageError(f"messages is a single {kind}; pass a list of messages.")
    if isinstance(messages, (bytes, bytearray)) or not isinstance(messages, Iterable):
        raise UsageError(f"the messages are {shown(messages)}; give a text or a list of messages.")
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

    if isinstance(part, (str, Slot, media.Image, media.Audio)):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise UsageError(f"{where} is no content part; write {{'type': 'text', 'text': ...}}.")
    if kind in _TEXT_TYPES:
        if not isinstance(part.get("text"), str):
            raise UsageError(f"{where}: a text part needs 'text', a string.")
        return part["text"]
    if kind == "image":
        needs = "a path, bytes, a PIL image or an array"
        return media.load_image(_source(where, kind, part, "picture", needs, local_files, max_bytes))
    if kind == "audio":
        sound = _source(where, kind, part, "sound", "a path, bytes or an array", local_files, max_bytes)
        return media.load_audio(sound, array_rate=part.get("rate"))
    if kind == "input_audio":
        held = part.get(kind)
        data = held.get("data") if isinstance(held, Mapping) else None
        if not isinstance(data, str):
            raise UsageError(f"{where}: an input_audio part needs 'input_audio': {{'data': base64, 'format': 'wav'}}.")
        return media.load_audio(decode_base64(data.partition(";base64,")[2] or data, max_bytes, "sound"))
    if kind not in _URL_TYPES:
        known = ", ".join(repr(name) for name in ("text", "image_url", "image", "input_audio", "audio_url"))
        raise UsageError(f"{where}: parts of type {kind!r} are not taken; use {known} or 'audio'.")
    held = part.get("image_url" if kind == "input_image" else kind)
    url = held.get("url") if isinstance(held, Mapping) else held
    if not isinstance(url, str):
        raise UsageError(f"{where}: an {kind} part needs a data: URL.")
    what = _URL_TYPES[kind]
    data = decode_data_url(url, max_bytes, what)
    return media.load_image(data) if what == "picture" else media.load_audio(data)


def _source(
    where: str, kind: str, part: Mapping[str, Any], what: str, needs: str, local_files: bool, max_bytes: int
) -> Any:
    """What a medium is loaded from; addresses are refused, and files where there are to be none."""
    source = part.get(kind)
    if source is None:
        raise UsageError(f"{where}: an {kind} part needs {kind!r}, {needs}.")
    if isinstance(source, str) and source.startswith("data:"):
        return decode_data_url(source, max_bytes, what)
    if isinstance(source, str):
        refuse_remote(source)
    if not local_files and not isinstance(source, bytes):
        raise UsageError(f"{where}: files of this machine are not read here; send the {what} as a data: URL.")
    return source


def refuse_remote(source: str) -> None:
    """Raise UsageError for http(s), ftp, file and the like: nothing is fetched because a message or a flag names it."""
    scheme, separator, _ = source.partition("://")
    if separator and scheme.isalnum():
        name = source if len(source) <= 60 else source[:57] + "..."
        if scheme.lower() == "file":
            raise UsageError(f"{name} is an address, which is never fetched; give the path alone, without file://.")
        raise UsageError(f"{name} is a remote address, which is never fetched; download the file and pass it instead.")


def decode_data_url(url: str, max_bytes: int, what: str = "picture") -> bytes:
    """The bytes of a base64 `data:` URL of at most `max_bytes`. Raises UsageError for any other URL."""
    if not url.lower().startswith("file:"):  # the sentence below fits it better
        refuse_remote(url)
    head, comma, payload = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise UsageError(
            f"the URL of a {what} must be a data: URL in base64, such as data:{_EXAMPLES[what]};base64,...; nothing "
            "else is read."
        )
    return decode_base64(payload, max_bytes, what)


def decode_base64(payload: str, max_bytes: int, what: str) -> bytes:
    """At most `max_bytes` bytes in base64; `what` they are stands in the message. Raises UsageError."""
    if len(payload) * 3 // 4 > max_bytes:
        raise UsageError(f"the {what} in base64 has more than {max_bytes // 1024 // 1024} MiB; make it smaller.")
    try:
        return base64.b64decode(payload.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise UsageError(f"the base64 of a {what} is malformed; encode it again.") from None
