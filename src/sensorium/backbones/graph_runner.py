"""One ONNX Runtime session over a prepared language model: embeddings and a `KVCache` in, logits out.

Inputs, outputs and the cache are bound once per shape and then only written to, so that a decoding step allocates
nothing and copies nothing: the graph appends keys and values inside the very buffers that it reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.kv_cache import KVCache
from sensorium.backbones.spec import BackboneSpec
from sensorium.backbones.threads import physical_cores
from sensorium.errors import SensoriumError

Floats = NDArray[np.float32]

DECODING, READING = "model.onnx", "reading.onnx"
"""The graphs of a directory: that of all models, and the one that some have for prompts (see `graph_rows`)."""


class GraphRunner:
    """A loaded graph. Safe to share by threads: the state of a run lives in its `Binding`.

    Args:
        directory: what `onnx_graph.build` wrote.
        spec: the model's.
        threads: None for one per physical core.
        graph: which of the directory's graphs.
    """

    def __init__(self, directory: Path, spec: BackboneSpec, threads: int | None = None, graph: str = DECODING) -> None:
        import onnxruntime as ort

        self.spec = spec
        self.threads = threads or physical_cores()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The graph is written as it should run; looking for further fusions only delays the start.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Planning which buffers to use again takes time that grows with the square of the nodes: seconds for `READING`.
        options.enable_mem_reuse = graph != READING
        config = _CONFIG | ({"session.force_spinning_stop": "1"} if graph == READING else {})
        for key, value in config.items():
            options.add_session_config_entry(key, value)
        try:
            self.session = ort.InferenceSession(str(directory / graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own family of exceptions, none of them exported
            reason = str(error).splitlines()[0][:160]
            raise SensoriumError(
                f"ONNX Runtime cannot load {directory} ({reason}); delete it, and it is made again."
            ) from None

    def cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` sequences."""
        spec = self.spec
        return KVCache(batch, spec.layers, spec.kv_heads, spec.head_dim, capacity)

    def binding(self, cache: KVCache, steps: int, chosen: int, outputs: tuple[str, ...] = ("logits",)) -> Binding:
        """Runs of `steps` positions; see `Binding`."""
        return Binding(self, cache, steps, chosen, outputs)


_CONFIG = {
    # Workers of one run share out small products in ever smaller pieces, so that none waits for another at the end.
    "session.dynamic_block_base": "4",
}


class Binding:
    """Fixed shapes bound to a runner and a cache: `step` runs the graph on new embeddings.

    Args:
        steps: how many positions each run adds to every sequence (S).
        chosen: how many of the last of those positions get outputs (P).
    """

    def __init__(
        self, runner: GraphRunner, cache: KVCache, steps: int, chosen: int, outputs: tuple[str, ...] = ("logits",)
    ) -> None:
        spec, batch = runner.spec, cache.batch
        self.runner, self.cache, self.steps = runner, cache, steps
        self.embeds = np.empty((batch, steps, spec.dim), np.float32)
        self.positions = np.arange(steps - chosen, steps, dtype=np.int64)
        self._seqlens = np.zeros(batch, np.int32)
        self._total = np.zeros((), np.int32)
        widths = {"logits": spec.vocab, "hidden": spec.dim}
        self.outputs: dict[str, Floats] = {
            name: np.empty((batch, chosen, widths[name]), np.float32) for name in outputs
        }
        self._bind()

    def _bind(self) -> None:
        import onnxruntime as ort

        binding = self.runner.session.io_binding()

        def value(array: NDArray[Any]) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(array)  # shares the array's memory

        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": self.embeds,
            "seqlens_k": self._seqlens,
            "total": self._total,
            "positions": self.positions,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, value(array))
        for name, array in self.outputs.items():
            binding.bind_ortvalue_output(name, value(array))
        for i, buffer in enumerate(self.cache.buffers):
            name, shared = f"{i // 2}.{'value' if i % 2 else 'key'}", value(buffer)
            binding.bind_ortvalue_input(f"past.{name}", shared)
            binding.bind_ortvalue_output(f"present.{name}", shared)
        self._binding, self._bound = binding, self.cache.buffers[0]

    def step(self, padding: int = 0) -> None:
        """Run on `embeds` [B, S, dim]: `outputs` hold the results until the next step, and the cache S more positions
        of every sequence. The last `padding` positions are computed and forgotten."""
        cache = self.cache
        total = int(cache.lengths.max()) + self.steps
        cache.grow(total)
        if cache.buffers[0] is not self._bound:
            self._bind()
        np.add(cache.lengths, self.steps - 1, out=self._seqlens)
        self._total[...] = total
        self.runner.session.run_with_iobinding(self._binding)
        cache.lengths += self.steps - padding
