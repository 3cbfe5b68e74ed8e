"""OpenAI-style messages, one sample per line (JSONL), per item (one JSON array) or per row (Parquet)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sensorium.training.data.formats import arrow
from sensorium.training.data.formats.lines import json_items, json_lines, opened
from sensorium.training.data.formats.reader import Reader, Record, Shard, matching


class MessagesReader(Reader):
    """Records as `conversation.sample_of` reads them."""

    kind = "messages"

    def files(self) -> list[Path]:
        """The JSON and Parquet files."""
        return matching(self.path, ".jsonl", ".ndjson", ".json", ".parquet")

    def records(self, shard: Shard, start: int) -> Iterator[Record]:
        """By what the file begins with, not by its name."""
        with opened(shard.path) as file:
            head = file.read(64)
        if head.startswith(arrow.PARQUET):
            return arrow.parquet_rows(shard.path, start)
        array = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        return json_items(shard.path, start) if array else json_lines(shard.path, start)
