"""Hugging Face `datasets` as `save_to_disk` writes them: a directory of Arrow stream files, read with pyarrow alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats import arrow
from sensorium.training.data.formats.conversation import CAPTIONS, TURNS
from sensorium.training.data.formats.folder import CLASS_QUESTION
from sensorium.training.data.formats.lines import opened
from sensorium.training.data.formats.reader import Reader, Record, Shard
from sensorium.training.data.formats.root import Root


class HuggingFaceReader(Reader):
    """A saved `Dataset`, or a `DatasetDict`, of which all splits are read; name the directory of one to read it alone.

    Rows are records of `conversation.sample_of`. A column of class labels answers "What is in this picture?" where
    nothing else is said.
    """

    kind = "hf"

    def files(self) -> list[Path]:
        """The Arrow files that `state.json` lists."""
        return [file for directory in self._splits() for file in self._files(directory)]

    def _splits(self) -> list[Path]:
        if (self.path / "state.json").is_file():
            return [self.path]
        splits = _json(self.path / "dataset_dict.json").get("splits")
        home = Root(self.path)
        return [home.file(str(name)) for name in splits] if isinstance(splits, list) else []

    def _files(self, directory: Path) -> list[Path]:
        listed = _json(directory / "state.json").get("_data_files")
        if not isinstance(listed, list) or not all(isinstance(f, dict) and "filename" in f for f in listed):
            raise UsageError(f"{directory / 'state.json'} lists no data files; save the data set again.")
        home = Root(directory)
        return [home.file(str(f["filename"])) for f in listed]

    def records(self, shard: Shard, start: int) -> Iterator[Record]:
        """The rows."""
        labels = _labels(shard.path)
        for record in arrow.stream_rows(shard.path, start):
            yield Record(record.where, partial(_named, record.value, labels)) if labels else record


def _named(decode: Any, labels: dict[str, list[str]]) -> dict[str, Any]:
    """A row whose class numbers are names."""
    row: dict[str, Any] = decode()
    for column, names in labels.items():
        if isinstance(row.get(column), int) and 0 <= row[column] < len(names):
            row[column] = names[row[column]]
            if not any(row.get(said) for said in (*TURNS, "texts", "question", *CAPTIONS)):
                row |= {"question": CLASS_QUESTION, "answer": str(row[column]).replace("_", " ")}
    return row


def _labels(path: Path) -> dict[str, list[str]]:
    """Columns of class labels and the names of their classes, from the schema."""
    try:
        features = json.loads(arrow.stream_metadata(path).get(b"huggingface", b"{}"))["info"]["features"]
        found = {k: f["names"] for k, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {k: names for k, names in found.items() if isinstance(names, list)}


def _json(path: Path) -> dict[str, Any]:
    with opened(path) as file:
        try:
            value = json.loads(file.read(16 << 20))
        except (ValueError, RecursionError):
            raise SensoriumError(f"{path} is no JSON; save the data set again.") from None
    return value if isinstance(value, dict) else {}
