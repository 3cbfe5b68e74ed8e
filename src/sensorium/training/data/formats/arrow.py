"""Rows of Parquet files and of Arrow streams, a few at a time. The only module that imports pyarrow, and not before a
file is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError, install
from sensorium.training.data.formats.reader import Record

PARQUET = b"PAR1"
_ROWS = 64  # decoded at a time: a row may hold pictures
_LARGEST = 4 << 30  # bytes of a row group when decompressed


def _pyarrow() -> Any:
    try:
        import pyarrow

        return pyarrow
    except ImportError:
        raise SensoriumError(
            f"Parquet and Arrow files need pyarrow, which is not installed; {install('data')}."
        ) from None


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """pyarrow's errors, as one sentence."""
    pyarrow = _pyarrow()
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SensoriumError(f"{path} is damaged or cut off ({reason}); get a whole copy of it.") from None


def parquet_rows(path: Path, start: int = 0) -> Iterator[Record]:
    """The rows of a Parquet file from number ``start`` on, as records that decode when asked."""
    with _sentences(path):
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for group in range(file.metadata.num_row_groups):
            facts = file.metadata.row_group(group)
            if number + facts.num_rows <= start:
                number += facts.num_rows
                continue
            if facts.total_byte_size > _LARGEST:
                raise SensoriumError(f"{path} has a row group of more than 4 GiB; write it with smaller row groups.")
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group]):
                yield from _rows(path, batch, number, start)
                number += batch.num_rows


def stream_rows(path: Path, start: int = 0) -> Iterator[Record]:
    """The same of an Arrow stream file, as Hugging Face `datasets` saves it; the file is memory-mapped."""
    with _sentences(path):
        import pyarrow.ipc

        number = 0
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            for batch in reader:
                if number + batch.num_rows > start:
                    yield from _rows(path, batch, number, start)
                number += batch.num_rows


def stream_metadata(path: Path) -> dict[bytes, bytes]:
    """What the schema of an Arrow stream file says about itself."""
    with _sentences(path):
        import pyarrow.ipc

        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            return dict(reader.schema.metadata or {})


def _rows(path: Path, batch: Any, number: int, start: int) -> Iterator[Record]:
    for index in range(max(0, start - number), batch.num_rows):
        yield Record(f"{path}, row {number + index + 1}", partial(_row, batch, index))


def _row(batch: Any, index: int) -> dict[str, Any]:
    """One row as plain Python."""
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns)}
    except (ValueError, OverflowError):  # text that is not UTF-8, dates beyond reason
        raise SensoriumError("the row holds values that cannot be read; write the file again.") from None
