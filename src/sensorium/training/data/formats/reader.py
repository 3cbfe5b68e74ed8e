"""What a format gives: shards, cheap records, and samples made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.conversation import sample_of
from sensorium.training.data.formats.root import Root
from sensorium.training.data.formats.sample import Broken, Sample


@dataclass(frozen=True)
class Shard:
    """What can be read on its own: a file, or every ``parts``-th file of a folder from ``part`` on."""

    path: Path
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Record:
    """A record before it is looked at.

    Attributes:
        where: its place.
        value: what it holds, a function that decodes that, or the SensoriumError that it is unreadable.
    """

    where: str
    value: Any


class Reader:
    """A data set on disk.

    Args:
        path: a file or directory of this format.
        media: the directory that names of media count from and must not leave; by default that of the data.
        name: what to call the data set; by default its path.
        licence: of samples that state none themselves.
        question: what captions and class names are the answer to, where the data asks nothing.
    """

    kind: ClassVar[str] = ""
    question: str = "Describe this picture."

    def __init__(
        self, path: Path, *, media: Path | None = None, name: str = "", licence: str = "", question: str = ""
    ) -> None:
        self.path, self.name, self.licence = path, name or str(path), licence
        self.question = question or self.question
        self.root = Root(media or (path if path.is_dir() else path.parent))

    def shards(self) -> list[Shard]:
        """What the data set consists of, always in the same order."""
        return [Shard(path) for path in self.files()]

    def files(self) -> list[Path]:
        """The files that hold records, sorted."""
        raise NotImplementedError

    def records(self, shard: Shard, start: int) -> Iterator[Record]:
        """The records of a shard from number ``start`` on, without looking into them.

        Raises:
            SensoriumError: the shard is damaged from here on.
        """
        raise NotImplementedError

    def sample(self, record: Record) -> Sample:
        """The sample that a record holds. Raises SensoriumError when it holds none."""
        value = record.value() if callable(record.value) else record.value
        if isinstance(value, SensoriumError):
            raise value
        return sample_of(value, record.where, self.root, self.question, self.name, self.licence)

    def read(self, shard: Shard, start: int = 0, step: int = 1) -> Iterator[Sample | Broken]:
        """Every ``step``-th sample of a shard, from record ``start`` on; a record that is no sample is `Broken`."""
        for record in islice(self.records(shard, start), 0, None, step):
            try:
                yield self.sample(record)
            except SensoriumError as error:
                yield Broken(record.where, str(error))

    def samples(self) -> Iterator[Sample | Broken]:
        """All of the data set, in order."""
        for shard in self.shards():
            yield from self.read(shard)


def matching(path: Path, *suffixes: str) -> list[Path]:
    """The file itself, or the files directly in a directory that end so, sorted.

    Raises:
        UsageError: there is none, or one is a symbolic link that leads out of the directory.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file()) if path.is_dir() else []
    if not found:
        raise UsageError(f"{path} holds no file that ends in {' or '.join(suffixes)}; name the data set's files.")
    return [inside(path, p) for p in found]


def inside(directory: Path, path: Path) -> Path:
    """The path, when it lies below the directory also behind symbolic links. Raises UsageError otherwise."""
    if not path.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{path} is a symbolic link that leads out of {directory}; put the file itself there.")
    return path
