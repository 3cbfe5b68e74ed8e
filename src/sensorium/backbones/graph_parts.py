"""The parts an ONNX graph is written from: nodes, small tensors inside the graph and large ones in a file beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import onnx

MS = "com.microsoft"
_ALIGNMENT = 4096
_INLINE_BYTES = 16384


class Parts:
    """Collects the nodes and initialisers of a graph; large arrays go to `file`, at aligned offsets.

    Attributes:
        nodes: in the order in which they were added, which is the order of execution.
        protos: the initialisers.
    """

    def __init__(self, file: BinaryIO, offsets: dict[str, int] | None = None) -> None:
        self._file = file
        self._offsets: dict[str, int] = {} if offsets is None else offsets
        self._names: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.protos: list[onnx.TensorProto] = []

    def beside(self) -> Parts:
        """The parts of a second graph over the same file: large arrays of the same name stand in it once."""
        return Parts(self._file, self._offsets)

    def node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add an operator and return the name of its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def tensor(self, name: str, array: np.ndarray) -> str:
        """Add an initialiser, where there is none of this name, and return its name."""
        import onnx
        from onnx import helper, numpy_helper

        if name in self._names:
            return name
        self._names.add(name)
        if array.nbytes <= _INLINE_BYTES:
            self.protos.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return name
        proto = onnx.TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        proto.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": "weights.bin", "offset": self.offset(name, array), "length": array.nbytes}
        for key, value in where.items():
            proto.external_data.add(key=key, value=str(value))
        self.protos.append(proto)
        return name

    def append(self, array: np.ndarray) -> int:
        """Write an array into the file alone and return its offset."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(array).data)
        return offset

    def offset(self, name: str, array: np.ndarray) -> int:
        """Where an initialiser's array lies in the file; one that is inside the graph is written there as well."""
        if name not in self._offsets:
            self._offsets[name] = self.append(array)
        return self._offsets[name]
