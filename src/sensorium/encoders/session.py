"""ONNX Runtime sessions for encoders whose graphs are written here, with the optimised graph cached on disk.

Parsing weights, writing a graph and optimising it takes a few hundred milliseconds, opening the cached graph a fifth of
that; both give bit-identical features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium import sessions
from sensorium.errors import SensoriumError
from sensorium.hub import atomic_write, cache_dir

if TYPE_CHECKING:
    import onnxruntime

FINGERPRINT = "sensorium.fingerprint"
"""The key in a graph's metadata under which the fingerprint of its features stands."""


def open_session(name: str, build: Callable[[], bytes], threads: int | None) -> onnxruntime.InferenceSession:
    """Open the cached graph ``name``; when there is none, build, cache and open it.

    Args:
        name: Names everything that ``build`` depends on (a digest of the weights, the resolution, a version).
        build: Makes the ONNX model, with ``FINGERPRINT`` in its metadata. Called only when the cache has nothing.
        threads: Threads of one run; ``None`` for one a core.

    Raises:
        SensoriumError: ``build`` refuses the weights. A cache that cannot be written is no error: the graph then stays
            in memory.
    """
    import onnxruntime

    try:
        # The optimised graph may hold operators of this release of the runtime.
        path = cache_dir("graphs") / f"{name}-ort{onnxruntime.__version__}.onnx"
    except SensoriumError:
        return sessions.session(build(), threads)
    session = _open_cached(path, threads)
    if session is None:
        model = build()
        try:
            with atomic_write(path) as file:
                file.write(_optimised(model))
        except SensoriumError:
            return sessions.session(model, threads)
        session = _open_cached(path, threads) or sessions.session(model, threads)
    return session


def _open_cached(path: Path, threads: int | None) -> onnxruntime.InferenceSession | None:
    """``None`` when the file is not there or damaged (it is then written anew)."""
    if not path.is_file():
        return None
    try:
        session = sessions.session(path, threads)
    except Exception:  # the runtime's errors share no class of their own
        return None
    return session if FINGERPRINT in session.get_modelmeta().custom_metadata_map else None


def _optimised(model: bytes) -> bytes:
    """The graph after the optimisations that hold on every processor (the others are done at each opening)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="sensorium-") as scratch:
        target = Path(scratch) / "graph.onnx"
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return target.read_bytes()
