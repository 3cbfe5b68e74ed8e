"""`log.jsonl`: a line of JSON for each logged step, flushed at once."""

from __future__ import annotations

import json
from pathlib import Path

from sensorium.training.logs.line import Progress

LOG = "log.jsonl"


class JsonLines:
    """The log of a stage from step ``first`` on; what an interrupted run wrote beyond its last checkpoint is dropped.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, first: int) -> None:
        kept = []
        if first and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] < first:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):  # the end of a line was lost when the run was killed
                    pass
        path.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Progress) -> None:
        """Append a line."""
        self._file.write(json.dumps(line.finite()) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
