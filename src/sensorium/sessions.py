"""How every ONNX graph is opened: on the CPU, quiet, with threads that sleep while the language model works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    import onnxruntime


def session(model: bytes | Path, threads: int | None) -> onnxruntime.InferenceSession:
    """Open a graph, or raise what ONNX Runtime raises: its own family of exceptions, none of them exported.

    Args:
        model: the graph, or its file.
        threads: of one run; ``None`` for one a core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    # Idle threads sleep instead of spinning: the language model's threads want the cores next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def trained_session(path: Path, wrong: str, threads: int | None) -> onnxruntime.InferenceSession:
    """Open the graph of a trained part.

    Args:
        path: the file.
        wrong: what a file is that is no such part, for messages: "not a projector".
        threads: of one run; ``None`` for one a core.

    Raises:
        SensoriumError: the file is missing, or no graph.
    """
    if not path.is_file():
        raise SensoriumError(f"{path} does not exist; a composition needs the ONNX file of each trained part.")
    try:
        return session(path, threads)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SensoriumError(f"{path} is {wrong} that ONNX Runtime can load ({reason}); export it again.") from None
