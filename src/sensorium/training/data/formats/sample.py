"""One training sample: a conversation whose media are references, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.media import Image
from sensorium.media.image import decode_image
from sensorium.media.limits import DEFAULT, Limits
from sensorium.media.reading import read_bytes, too_large_error
from sensorium.messages import Message


@dataclass(frozen=True, eq=False)
class MediaRef:
    """A medium that is not opened yet: a file, a stretch of a file (a tar member), or bytes out of a table.

    Attributes:
        name: what messages call it.
        path: the file, already checked to lie below the data set's directory (`root.Root`).
        span: (offset, bytes) of the medium in ``path``; None for the whole file.
        data: the encoded bytes, where there is no file of its own.
        kind: "image".
    """

    name: str
    path: Path | None = None
    span: tuple[int, int] | None = None
    data: bytes | None = None
    kind: str = "image"

    def read(self, limits: Limits = DEFAULT) -> bytes:
        """The encoded bytes. Raises SensoriumError: missing, cut off, empty, no regular file, or too large."""
        if self.path is None:
            return read_bytes(self.data or b"", limits.max_bytes)[0]
        if self.span is None:
            return read_bytes(self.path, limits.max_bytes)[0]
        offset, size = self.span
        if size > limits.max_bytes:
            raise too_large_error(self.name, size, limits.max_bytes)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise SensoriumError(f"{self.name} cannot be read ({error.strerror}); check the data set.") from None
        if len(data) < size or not data:
            raise SensoriumError(f"{self.name} is {'cut off' if data else 'empty'}; get a whole copy of the data set.")
        return data

    def load(self, limits: Limits = DEFAULT) -> Image:
        """The decoded picture, through the media door. Raises SensoriumError as `media.load_image`."""
        return decode_image(self.read(limits), limits, label=self.name)


@dataclass(frozen=True, eq=False)
class Sample:
    """A conversation to learn from.

    Attributes:
        id: its own, or its place in the data set.
        messages: the turns; media in them are `MediaRef`.
        where: file and line (or row, or member), for messages.
        source: where it was collected, as the data set says.
        licence: of its content, as the data set says.
    """

    id: str
    messages: tuple[Message, ...]
    where: str
    source: str = ""
    licence: str = ""

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """All media, in the order in which `prompt.render` places them."""
        return tuple(medium for message in self.messages for medium in message.media)

    @property
    def answers(self) -> tuple[str, ...]:
        """The assistant's turns: what is learnt."""
        return tuple(message.text for message in self.messages if message.role == "assistant")


@dataclass(frozen=True)
class Broken:
    """A record that is no sample, and why; the records behind it can still be read."""

    where: str
    reason: str

    def error(self) -> SensoriumError:
        """As an exception, for training, which stops here."""
        return SensoriumError(f"{self.where}: {self.reason}")
