"""A Hugging Face directory as a source of weights: `config.json`, `*.safetensors` and `tokenizer.json`, without torch.

What `save_pretrained` of transformers writes is read here and shown under GGUF's names, in GGUF's row order and with
GGUF's metadata keys, so that a directory and a GGUF conversion of it give the same graph. No pickle is opened, no code
of a repository is run (`auto_map` is not looked at), and every number in every file is checked before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones import hf_config, hf_tokenizer
from sensorium.backbones.hf_config import Unsupported
from sensorium.backbones.hf_names import hf_name, permute
from sensorium.backbones.safetensors_file import SafetensorsFile
from sensorium.errors import SensoriumError

__all__ = ["CONFIG", "INDEX", "TOKENIZER", "WEIGHTS", "HFFolder", "Unsupported", "files_of"]

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")
"""Read where they exist: which tokens end an answer, which one begins a text, the chat template."""

MAX_JSON, MAX_INDEX, MAX_TOKENIZER = 4 << 20, 32 << 20, 256 << 20
MAX_SHARDS = 1 << 12
_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "tf_model.h5")
_FREQUENCIES = "rope_freqs.weight"
# Tables that old files store although the configuration gives them.
_DERIVED = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True)
class HFTensor:
    """A tensor under its GGUF name: `source` is its name in the directory, `type` how it is stored there."""

    name: str
    shape: tuple[int, ...]
    type: str
    source: str


class HFFolder:
    """An open directory; a `source.WeightSource`, usable as a context manager.

    Opening reads the configuration, the index and the headers of all weight files. `tensors` are for the architectures
    that the graph writer knows and raise `Unsupported` for others.

    Raises:
        SensoriumError: a file is missing, damaged or hostile; one sentence says which.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files: dict[str, SafetensorsFile] = {}
        if not self.path.is_dir():
            raise SensoriumError(f"{self.path} is no directory; give a Hugging Face model directory, with {CONFIG}.")
        try:
            self.config = self._object(CONFIG, MAX_JSON)
            self.weights: dict[str, SafetensorsFile] = dict(self._open_weights())
        except BaseException:
            self.close()
            raise

    # -- WeightSource -------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """How a sentence about this directory begins."""
        return f"The model directory {self.path}"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What a GGUF file of this model would hold; of other architectures, its tokenizer alone."""
        known: dict[str, Any] = {}
        with contextlib.suppress(Unsupported):
            known = self._known[0]
        return {**known, **self._tokenizer(self.vocab)}

    @cached_property
    def tensors(self) -> Mapping[str, HFTensor]:
        """The model's tensors by GGUF name. Raises Unsupported for other architectures."""
        metadata, tied, divisors = self._known
        arch = metadata["general.architecture"]
        names = {hf_name(name, arch): name for name in _expected(arch, self._layers(arch), tied)}
        found = {}
        for source, file in self.weights.items():
            if _DERIVED.fullmatch(source) or (tied and source == "lm_head.weight"):
                continue
            if source not in names:
                raise Unsupported(str(self.error(f"holds the tensor {source[:200]!r}, which no {arch} model has")))
            entry = file.entries[source]
            if entry.type not in ("F32", "F16", "BF16", "F64"):
                raise Unsupported(str(self.error(f"stores {source} as {entry.type}, which is no F32, F16 or BF16")))
            found[names[source]] = HFTensor(names[source], entry.shape, entry.type, source)
        missing = next((source for source in names if source not in self.weights), None)
        if missing is not None:
            raise self.error(f"lacks the tensor {missing!r}; fetch it again")
        if divisors is not None:
            found[_FREQUENCIES] = HFTensor(_FREQUENCIES, divisors.shape, "F32", CONFIG)
        return found

    def own_name(self, name: str) -> str:
        """The name of a tensor in the directory."""
        return hf_name(name, self._known[0]["general.architecture"]) or name

    def load(self, name: str) -> np.ndarray:
        """The tensor as a new float32 array in GGUF's row order."""
        metadata, _, divisors = self._known
        if name == _FREQUENCIES and divisors is not None:
            return divisors.copy()
        source, arch = self.tensors[name].source, metadata["general.architecture"]
        array: NDArray[np.float32] = self.weights[source].load(source)
        if not np.isfinite(array).all():
            raise self.error(f"holds values in {source} that are not finite; fetch it again")
        if arch == "llama" and ".attn_q." in name:
            return permute(array, metadata["llama.attention.head_count"])
        if arch == "llama" and ".attn_k." in name:
            return permute(array, metadata["llama.attention.head_count_kv"])
        if arch == "gemma3" and name.endswith("norm.weight"):
            array += np.float32(1)  # transformers multiplies by 1 + weight
        return array

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes as stored, rows in Hugging Face order: no type here has blocks that could be re-coded."""
        source = self.tensors[name].source
        return self.weights[source].raw(source)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and digests of the configuration, the tokenizer and the weight files."""
        digests = {name: hashlib.sha256(self._bytes(name, limit)).hexdigest() for name, limit in self._texts()}
        digests |= {name: file.digest() for name, file in self._files.items()}
        lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
        return hashlib.sha256(f"sensorium hf 1\n{lines}".encode()).hexdigest()

    def close(self) -> None:
        """Close all files; arrays that `load` gave stay valid."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> HFFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- what any architecture has ------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum((self.path / name).stat().st_size for name in self._files)

    @property
    def vocab(self) -> int:
        """Rows of the embedding matrix as the configuration has them."""
        value = self.config.get("vocab_size")
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.error(f"gives {str(value)[:40]!r} for vocab_size, where one positive whole number is needed")
        return value

    def _tokenizer(self, vocab: int) -> dict[str, Any]:
        """GGUF metadata of the tokenizer and the chat template."""
        if not (self.path / TOKENIZER).exists():
            raise self.error(f"has no {TOKENIZER}; save its tokenizer as a fast one")
        options = dict(self.config)
        for name in ("generation_config.json", "tokenizer_config.json"):
            if (self.path / name).exists():
                options |= {key: value for key, value in self._object(name, MAX_JSON).items() if value is not None}
        data = self._object(TOKENIZER, MAX_TOKENIZER)
        metadata = hf_tokenizer.metadata_of(data, options, vocab, self.error)
        template = options.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if (self.path / "chat_template.jinja").exists():
            template = self._bytes("chat_template.jinja", MAX_JSON).decode("utf-8", "replace")
        return {**metadata, "tokenizer.chat_template": template}

    def error(self, problem: str) -> SensoriumError:
        """One sentence about this directory."""
        return SensoriumError(f"{self.label} {problem}.")

    # -- inside -------------------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> tuple[dict[str, Any], bool, NDArray[np.float32] | None]:
        return hf_config.metadata_of(self.config, self.error)

    def _layers(self, arch: str) -> int:
        """Layers as configured; more than there are tensors cannot be, so that no loop runs for ever."""
        layers: int = self._known[0][f"{arch}.block_count"]
        if layers > len(self.weights):
            raise self.error(f"claims {layers} layers and holds {len(self.weights)} tensors; it is damaged")
        return layers

    def _open_weights(self) -> Iterator[tuple[str, SafetensorsFile]]:
        """(tensor name, its file) of every tensor."""
        if (self.path / "adapter_config.json").exists():
            raise self.error("is an adapter for another model; merge it into that model and save the whole")
        if (self.path / WEIGHTS).exists():
            file = self._open(WEIGHTS)
            yield from ((name, file) for name in file.entries)
            return
        if not (self.path / INDEX).exists():
            pickled = next((name for name in _PICKLES if (self.path / name).exists()), None)
            if pickled:
                raise self.error(
                    f"holds its weights as {pickled}, a form that can run code when it is read; save it as {WEIGHTS}"
                )
            raise self.error(f"has neither {WEIGHTS} nor {INDEX}; fetch it again")
        places = self._object(INDEX, MAX_INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise self.error(f"has an index of weights without a weight_map in {INDEX}; fetch it again")
        shards = set(map(str, places.values()))
        if len(shards) > MAX_SHARDS:
            raise self.error(f"names {len(shards)} weight files in {INDEX}; it is damaged")
        odd = next((name for name in shards if not _SHARD.fullmatch(name)), None)
        if odd is not None:
            raise self.error(f"names the weight file {odd[:80]!r} in {INDEX}, which is no file inside it")
        files = {name: self._open(name) for name in sorted(shards)}
        for tensor, shard in places.items():
            if tensor not in files[shard].entries:
                raise self.error(f"names the tensor {tensor[:200]!r} in {INDEX}, which {shard} does not hold")
            yield tensor, files[shard]

    def _open(self, name: str) -> SafetensorsFile:
        self._files[name] = SafetensorsFile(self.path / name)
        return self._files[name]

    def _texts(self) -> Iterator[tuple[str, int]]:
        """Text files that change the numbers, and how large they may be."""
        yield CONFIG, MAX_JSON
        if (self.path / TOKENIZER).exists():
            yield TOKENIZER, MAX_TOKENIZER

    def _bytes(self, name: str, limit: int) -> bytes:
        path = self.path / name
        if not path.is_file():  # a named pipe would block for ever
            raise self.error(f"has no file {name}; fetch it again")
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise self.error(f"has a file {name} that cannot be read ({error.strerror})") from None
        if len(data) > limit:
            raise self.error(f"has a file {name} of more than {limit >> 20} MiB; it is damaged")
        return data

    def _object(self, name: str, limit: int) -> dict[str, Any]:
        try:
            value = json.loads(self._bytes(name, limit))
        except (ValueError, RecursionError):
            raise self.error(f"has a file {name} that is no JSON; fetch it again") from None
        if not isinstance(value, dict):
            raise self.error(f"has a file {name} that holds no mapping; fetch it again")
        return value


def files_of(path: Path) -> list[Path]:
    """The files of a directory that are read, in a fixed order: for cache keys and pins. The directory may be
    incomplete."""
    fixed = [path / name for name in (CONFIG, TOKENIZER, INDEX, *OPTIONAL)]
    found = [*(file for file in fixed if file.is_file()), *path.glob("*.safetensors")]
    return sorted(found)


def _expected(arch: str, layers: int, tied: bool) -> Iterator[str]:
    """GGUF names of the tensors of a model."""
    yield from ("token_embd.weight", "output_norm.weight")
    if not tied:
        yield "output.weight"
    parts = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    parts += ["attn_q_norm", "attn_k_norm"] if arch in ("qwen3", "gemma3") else []
    parts += ["post_attention_norm", "post_ffw_norm"] if arch == "gemma3" else []
    kinds = [f"{part}.weight" for part in parts]
    kinds += ["attn_q.bias", "attn_k.bias", "attn_v.bias"] if arch == "qwen2" else []
    for layer in range(layers):
        yield from (f"blk.{layer}.{kind}" for kind in kinds)
