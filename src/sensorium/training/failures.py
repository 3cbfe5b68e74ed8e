"""What the machine does to a run, as one sentence each: a full disk, no memory, a process that has gone."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from sensorium.errors import SensoriumError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "timed out waiting")


@contextlib.contextmanager
def in_a_sentence(output: Path) -> Iterator[None]:
    """Inside, such a failure becomes a SensoriumError; what else goes wrong is left as it is.

    Args:
        output: of the run, where its checkpoints are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SensoriumError(
            f"{error.filename or output} cannot be written ({error.strerror}); checkpoints there are whole, so make "
            f"room and continue with --resume {output}."
        ) from None
    except (MemoryError, RuntimeError) as error:
        sentence = _explained(error, output)
        if sentence is None:
            raise
        raise SensoriumError(sentence) from None


def _explained(error: Exception, output: Path) -> str | None:
    said = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return (
            "Memory ran out; lower train.rows or train.row_tokens, or divide the backbone among processes "
            f"(train.sharding=full), and continue with --resume {output}."
        )
    if any(sign in said for sign in GONE):
        return f"Another process of this run has gone; continue from the last checkpoint with --resume {output}."
    return None
