"""What a record says -> a conversation. The one place that knows the names of columns, roles and content parts.

A record is a mapping with one of

    messages, conversations    turns as {"role", "content"} or {"from", "value"}
    texts                      turns as {"user", "assistant"} (The Cauldron)
    question + answer(s)       one question (VQA)
    caption(s) or text         what a picture shows

and pictures in the content itself, or in `images`, `image`, `jpg`, `png` and the like: there `<image>` in a text, or a
content part without a picture of its own, is where the next of them stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.errors import UsageError
from sensorium.messages import Message
from sensorium.training.data.formats.root import Root
from sensorium.training.data.formats.sample import MediaRef, Sample

MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "developer": "system"}
TURNS = ("messages", "conversations", "conversation")
PICTURES = ("images", "image", "picture", "jpg", "jpeg", "png", "webp", "img")
CAPTIONS = ("caption", "captions", "text", "txt")
IDS = ("id", "__key__", "key", "question_id", "image_id", "uid")
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image", "image_file")


def sample_of(record: object, where: str, root: Root, question: str, source: str = "", licence: str = "") -> Sample:
    """The sample of a record.

    Args:
        record: the record.
        where: its place.
        root: what its media are looked up below.
        question: what captions answer.
        source, licence: where the record names none.

    Raises:
        UsageError: it is no mapping, holds no conversation, or its pictures and their places do not match.
    """
    if not isinstance(record, Mapping):
        raise UsageError(f"the record is of type {type(record).__name__}; a sample is an object with `messages`.")
    given = [root.reference(value, where) for value in _listed(record, PICTURES)]
    pictures = _Pictures(given, root, where)
    turns = pictures.placed([_turn(pictures, turn) for turn in _turns(record, question)])
    return Sample(
        id=str(next((record[k] for k in IDS if record.get(k) not in (None, "")), where.rpartition("/")[2]))[:200],
        messages=tuple(Message(role, content) for role, content in turns),
        where=where,
        source=str(record.get("source") or record.get("dataset") or source)[:200],
        licence=str(record.get("licence") or record.get("license") or licence)[:200],
    )


def _turns(record: Mapping[str, Any], question: str) -> list[Mapping[str, Any]]:
    for name in TURNS:
        if record.get(name) is not None:
            if not isinstance(record[name], Sequence) or isinstance(record[name], str) or not record[name]:
                raise UsageError(f"`{name}` must be a list of at least one turn.")
            return list(record[name])
    if isinstance(record.get("texts"), Sequence) and not isinstance(record["texts"], str):
        pairs = [pair if isinstance(pair, Mapping) else {} for pair in record["texts"]]
        return [{"role": role, "content": pair.get(role)} for pair in pairs for role in ("user", "assistant")]
    if record.get("question") is not None:
        answer = _answer(record)
        return [{"role": "user", "content": record["question"]}, {"role": "assistant", "content": answer}]
    captions = _listed(record, CAPTIONS)
    if captions:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": captions[0]}]
    raise UsageError("it holds no messages, conversations, question and answer, or caption; see docs/data.md.")


def _answer(record: Mapping[str, Any]) -> Any:
    """The answer, or the one that most people gave."""
    found = [a.get("answer") if isinstance(a, Mapping) else a for a in _listed(record, ("answer", "answers"))]
    if not found:
        raise UsageError("it has a `question` and no `answer`.")
    return Counter(found).most_common(1)[0][0] if all(isinstance(a, str) for a in found) else found[0]


def _listed(record: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """What the first of these columns that is there holds, as a list."""
    for name in names:
        value = record.get(name)
        if value is not None and (value != "" or names is not PICTURES):  # an empty answer is one, and is found later
            return [v for v in value if v is not None] if isinstance(value, (list, tuple)) else [value]
    return []


def _turn(pictures: _Pictures, turn: object) -> tuple[str, list[Any]]:
    """(role, texts and pictures) of one turn."""
    if not isinstance(turn, Mapping):
        raise UsageError(f"a turn is of type {type(turn).__name__}; write {{'role': 'user', 'content': 'text'}}.")
    role = str(turn.get("role") or turn.get("from"))
    role, content = ROLES.get(role, role), turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return role, pictures.marked(content) if role == "user" else [content]
    if not isinstance(content, (list, tuple)):
        raise UsageError(
            f"the content of the {role} turn is of type {type(content).__name__}; give a text or a list of parts."
        )
    return role, [p for part in content for p in pictures.part(part)]


class _Pictures:
    """The pictures that a record lists, handed out in order to the places that its texts have for them."""

    def __init__(self, given: list[MediaRef], root: Root, where: str) -> None:
        self.given, self.used, self.root, self.where = given, 0, root, where

    def next(self) -> MediaRef:
        self.used += 1
        if self.used > len(self.given):
            raise UsageError(f"it has more places for pictures than the {len(self.given)} pictures that it lists.")
        return self.given[self.used - 1]

    def marked(self, text: str) -> list[Any]:
        """A text with a picture at every mark; without listed pictures, `<image>` is just characters."""
        pieces = text.split(MARK) if self.given else [text]
        if len(pieces) == 1:
            return pieces
        whole = " ".join(piece.strip() for piece in pieces if piece.strip())
        return [*(self.next() for _ in pieces[1:]), *([whole] if whole else [])]

    def part(self, part: object) -> list[Any]:
        """A content part of an OpenAI-style message. Columns that another part needs may stand there as null."""
        if isinstance(part, str):
            return self.marked(part)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(kind, str):
            raise UsageError("a content part has no type; write {'type': 'text', 'text': ...}.")
        if kind in _TEXTS:
            if not isinstance(part.get("text"), str):
                raise UsageError("a text part needs 'text', a string.")
            return [part["text"]]
        if kind not in _IMAGES:
            raise UsageError(f"parts of type {kind[:40]!r} are not taken; use 'text', 'image_url' or 'image'.")
        held = next((part[k] for k in ("image", "image_url", "url", "path", "bytes") if part.get(k)), None)
        return [self.next() if held is None else self.root.reference(held, self.where)]

    def placed(self, turns: list[tuple[str, list[Any]]]) -> list[tuple[str, list[Any]]]:
        """The turns with all pictures in them: those of a record without any place go before its first question."""
        if self.used == len(self.given):
            return turns
        first = next((content for role, content in turns if role == "user"), None)
        if self.used or first is None:
            raise UsageError(f"it lists {len(self.given)} pictures and has places for {self.used}.")
        first[:0] = self.given
        return turns
