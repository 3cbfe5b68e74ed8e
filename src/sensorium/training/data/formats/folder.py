"""Pictures in folders. What is said about them stands, by the first that is there, in

metadata.jsonl     {"file_name": "a.jpg", "text": ...}, or any record of `conversation.sample_of`
captions.txt       a.jpg<TAB>caption (a "#0" behind the name, as in Flickr8k, is left out)
a.txt              beside a.jpg
the folder's name  of the picture: its class
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from sensorium.errors import UsageError
from sensorium.training.data.formats.lines import MAX_RECORD, json_lines, opened
from sensorium.training.data.formats.reader import Reader, Record, Shard, inside
from sensorium.training.data.formats.webdataset import IMAGES

METADATA, CAPTIONS = "metadata.jsonl", "captions.txt"
CLASS_QUESTION = "What is in this picture?"
_FILES_A_SHARD = 1000


class FolderReader(Reader):
    """A folder; class folders may lie at any depth, symbolic links to folders are not followed."""

    kind = "folder"

    def files(self) -> list[Path]:
        """The file of captions, or every picture."""
        for name in (METADATA, CAPTIONS):
            if (self.path / name).is_file():
                return [inside(self.path, self.path / name)]
        if not self._pictures:
            raise UsageError(f"{self.path} holds no picture; give a folder with {', '.join(IMAGES[:4])} files.")
        return [self.path / name for name in self._pictures]

    @cached_property
    def _pictures(self) -> list[str]:
        """Names of all pictures, relative to the folder: of a folder, the names are held, never the pictures."""
        found = []
        for directory, _, names in os.walk(self.path):
            relative = Path(directory).relative_to(self.path)
            found += [(relative / n).as_posix() for n in names if n.rpartition(".")[2].lower() in IMAGES]
        return sorted(found)

    def shards(self) -> list[Shard]:
        """The file of captions; or parts of the folder that each hold pictures of all classes."""
        files = self.files()
        if files[0].name in (METADATA, CAPTIONS):
            return [Shard(files[0])]
        parts = -(-len(files) // _FILES_A_SHARD)
        return [Shard(self.path, part, parts) for part in range(parts)]

    def records(self, shard: Shard, start: int) -> Iterator[Record]:
        """One per picture."""
        if shard.path.name == METADATA:
            return (Record(r.where, _named(r.value)) for r in json_lines(shard.path, start))
        if shard.path.name == CAPTIONS:
            return _captions(shard.path, start)
        names = self._pictures[shard.part :: shard.parts][start:]
        return (Record(str(self.path / name), lambda name=name: self._picture(name)) for name in names)

    def _picture(self, name: str) -> dict[str, Any]:
        beside = Path(name).with_suffix(".txt").as_posix()
        if (self.path / beside).is_file():
            with opened(self.root.file(beside)) as file:
                text = file.read(MAX_RECORD).decode("utf-8", errors="replace").strip()
            return {"id": name, "image": name, "caption": text}
        label = Path(name).parent.name
        if not label:
            raise UsageError(f"{name} has no caption: no {beside}, no {CAPTIONS} and no class folder around it.")
        answer = label.replace("_", " ").replace("-", " ")
        return {"id": name, "image": name, "question": CLASS_QUESTION, "answer": answer}


def _named(value: Any) -> Any:
    """A line of metadata with the names of columns that Hugging Face gives it."""
    if not isinstance(value, dict) or "file_name" not in value:
        return value
    return {"id": value["file_name"], "image": value["file_name"], **value}


def _captions(path: Path, start: int) -> Iterator[Record]:
    """The lines of a table of captions."""
    with opened(path) as file:
        number = -1
        for line_number, line in enumerate(iter(lambda: file.readline(1 << 20), b""), start=1):
            if not line.strip():
                continue
            number += 1
            if number < start:
                continue
            where = f"{path}, line {line_number}"
            name, tab, caption = line.decode("utf-8", errors="replace").strip().partition("\t")
            if not tab:
                yield Record(where, UsageError("the line has no tab; write the picture's name, a tab, the caption."))
            else:
                yield Record(where, {"image": name.partition("#")[0], "caption": caption.strip()})
