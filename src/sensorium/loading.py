"""The parts of a composition, each loaded when first needed and never twice, or ahead of time in threads.

Loading is what a cold start consists of, so two things matter here. Parts load side by side (ONNX Runtime releases the
GIL while it prepares a graph), and what is derived from frozen files (shapes, fingerprints, quantised graphs) is kept
in the cache: a conversation without pictures never opens the encoder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

# Packages are imported before threads are: of two that import a package and a module of it at once, one is locked out.
from sensorium import __version__, encoders, generators, hub, seams
from sensorium.composition import CHANGING, ON_DEMAND, Composition, file_sha256
from sensorium.encoders import FeatureSpec, Grid, Sequence
from sensorium.errors import SensoriumError, install
from sensorium.hub.paths import remove_stale
from sensorium.hub.progress import say
from sensorium.hub.seal import is_sealed, seal

if TYPE_CHECKING:
    from sensorium.backbones.engine import Engine
    from sensorium.backbones.spec import BackboneSpec
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.backbones.torch_engine import TorchModel
    from sensorium.projectors.runtime import Projector
    from sensorium.projectors.units import UnitProjector

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value that is made once, on the first `get` or in a thread after `start`. An exception is kept and raised
    again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._value: T
        self._error: BaseException | None = None
        self._done = False

    def start(self) -> None:
        """Begin making the value in a thread."""
        if not self._done:
            threading.Thread(target=self._run, name="load", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether the value is there already."""
        return self._done and self._error is None

    def get(self) -> T:
        """The value; waits for it or makes it."""
        if not self._done:
            self._run()
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        with self._lock:
            if self._done:
                return
            try:
                self._value = self._make()
            except Exception as error:
                self._error = error
            self._done = True


@dataclass(frozen=True)
class Changes:
    """Files of what was trained of the LLM for conversations with pictures, if anything was."""

    lora: Path | None = None
    new_tokens: Path | None = None

    @classmethod
    def of(cls, composition: Composition) -> Changes:
        """Those of a composition. Raises SensoriumError when a file is missing."""
        parts = composition.spec.lora, composition.spec.new_tokens
        return cls(*(composition.file(part.weights) if part else None for part in parts))

    def __str__(self) -> str:
        names = [name for name, file in (("LoRA", self.lora), ("new tokens", self.new_tokens)) if file]
        return f" with its {' and '.join(names)}" if names else ""


class Parts:
    """Lazily loaded parts of one composition.

    Attributes:
        backbone, bare_tokenizer: the LLM's facts and its tokenizer as published.
        tokenizer: the same with the composition's new tokens, which it reads in answers alone.
        runs_on: "onnx" or "torch": which engine runs it.
        bare, media: engines of the LLM as published, and with the composition's LoRA and new tokens. Without these they
            are the same engine.
        features, encoders, projectors: by kind of media.
        seams: by kind of media: the checks of encoder and projector, made once.
        generator: of speech; hibari where the composition declares none.
        output: the output projector that speaks to it, every seam checked; None where there is none.
    """

    def __init__(self, composition: Composition, threads: int | None = None, progress: bool = True) -> None:
        self.composition, self.threads, self.progress = composition, threads, progress
        spec = composition.spec
        self.backbone: Lazy[BackboneSpec] = Lazy(self._backbone)
        self.bare_tokenizer: Lazy[Tokenizer] = Lazy(self._bare_tokenizer)
        self.tokenizer: Lazy[Tokenizer] = Lazy(self._tokenizer) if spec.new_tokens else self.bare_tokenizer
        self.runs_on: Lazy[str] = Lazy(self._runs_on)
        self.torch_model: Lazy[TorchModel] = Lazy(self._torch_model)
        self.bare: Lazy[Engine] = Lazy(lambda: self._engine(Changes()))
        changed = spec.lora or spec.new_tokens
        self.media: Lazy[Engine] = Lazy(lambda: self._engine(Changes.of(composition))) if changed else self.bare
        self.features: dict[str, Lazy[FeatureSpec]] = {m: _bind(self._features, m) for m in spec.encoders}
        self.encoders: dict[str, Lazy[Any]] = {m: _bind(self._encoder, m) for m in spec.encoders}
        self.projectors: dict[str, Lazy[Projector]] = {m: _bind(self._projector, m) for m in spec.projectors}
        self.seams: dict[str, Lazy[None]] = {m: _bind(self._check_seam, m) for m in spec.projectors}
        self.generator: Lazy[Any] = Lazy(self._generator)
        self.output: Lazy[UnitProjector | None] = Lazy(self._output)

    def fetch(self, kinds: Collection[str] = ()) -> None:
        """Fetch the frozen parts, one after the other, so that progress bars do not mix. Those that are for `ON_DEMAND`
        media come with `kinds` that name them."""
        self.composition.backbone_path(progress=self.progress)
        for name in self.composition.spec.encoders:
            if name in kinds or name not in ON_DEMAND:
                hub.fetch(self.composition.part("encoders", name), progress=self.progress)

    def start(self, kinds: Collection[str]) -> None:
        """Begin to load what a conversation with such media needs, in threads."""
        ahead: list[Lazy[Any]] = [self.engine(kinds), self.tokenizer]
        for held in (self.encoders, self.projectors):
            ahead += [held[kind] for kind in kinds if kind in held]
        for part in ahead:
            part.start()

    def engine(self, kinds: Collection[str]) -> Lazy[Engine]:
        """The engine of conversations with such media."""
        return self.media if CHANGING.intersection(kinds) else self.bare

    def reader(self, kinds: Collection[str]) -> Lazy[Tokenizer]:
        """The tokenizer of conversations with such media."""
        return self.tokenizer if CHANGING.intersection(kinds) else self.bare_tokenizer

    def ready(self, kinds: Collection[str]) -> tuple[Engine, Tokenizer]:
        """Load what a conversation with such media needs; its engine and its tokenizer."""
        self.start(kinds)
        for kind in kinds:
            self.sense(kind)
        return self.engine(kinds).get(), self.reader(kinds).get()

    def sense(self, kind: str) -> tuple[Any, Projector]:
        """The encoder and the projector of a kind of media, their seams checked."""
        self.seams[kind].get()
        return self.encoders[kind].get(), self.projectors[kind].get()

    def check(self) -> None:
        """Check every seam and digest, but those of `ON_DEMAND` media and of output, which are checked when they are
        first used. Raises SensoriumError or UsageError with one sentence."""
        composition = self.composition
        backbone = self.backbone.get()
        self.runs_on.get()
        seams.check_backbone(composition, backbone)
        composition.check_files()
        seams.check_lora(composition, backbone)
        if composition.spec.new_tokens:
            seams.check_new_tokens(composition, backbone, self.bare_tokenizer.get())
        for kind, seam in self.seams.items():
            if kind not in ON_DEMAND:
                seam.get()

    def _check_seam(self, kind: str) -> None:
        features = self.features[kind].get()
        seams.check_fingerprint(self.composition, seams.part_name(kind), features.fingerprint)
        seams.check_projector(self.composition, kind, features, self.projectors[kind].get(), self.backbone.get())

    # How each part is made --------------------------------------------------------------------------------------------

    def _path(self, *keys: str) -> Path:
        return hub.fetch(self.composition.part(*keys), progress=self.progress)

    def _backbone(self) -> BackboneSpec:
        from sensorium.backbones.spec import BackboneSpec, spec_from_gguf

        def read() -> dict[str, Any]:
            with self._source() as source:
                if self.composition.spec.backbone.format == "hf":
                    from sensorium.backbones.hf_spec import spec_of

                    facts = asdict(spec_of(source))
                else:
                    facts = asdict(spec_from_gguf(source))
            return {**facts, "eos_ids": sorted(facts["eos_ids"])}

        facts = remembered(["backbone", self.composition.identity("backbone")], read, self._trained(seams.BACKBONE))
        return BackboneSpec(**{**facts, "eos_ids": frozenset(facts["eos_ids"])})

    def _bare_tokenizer(self) -> Tokenizer:
        from sensorium.backbones.tokenizer import Tokenizer

        with self._source() as source:
            return Tokenizer.from_gguf(source)

    def _tokenizer(self) -> Tokenizer:
        from sensorium.backbones.new_tokens import WithNewTokens

        declared = self.composition.spec.new_tokens
        assert declared is not None
        return WithNewTokens(self.bare_tokenizer.get(), declared.names, self.backbone.get().vocab)

    def _source(self) -> Any:
        """The LLM's file or directory, open."""
        path = self.composition.backbone_path(progress=self.progress)
        if self.composition.spec.backbone.format == "hf":
            from sensorium.backbones.hf_folder import HFFolder

            return HFFolder(path)
        from sensorium.backbones.gguf import GGUF

        return GGUF(path)

    def _runs_on(self) -> str:
        """ "onnx" or "torch", which is refused where it is not installed."""
        declared = self.composition.spec.backbone
        if declared.format == "gguf":
            return "onnx"

        def read() -> dict[str, Any]:
            from sensorium.backbones.hf_spec import why_not_onnx

            with self._source() as folder:
                return {"why_not": why_not_onnx(folder)}

        why_not = ""
        if declared.engine != "torch":
            why_not = str(remembered(["why_not_onnx", self.composition.identity("backbone")], read)["why_not"])
        if declared.engine == "onnx" and why_not:
            raise SensoriumError(f"{why_not}; it needs `engine: torch`.")
        runs_on = "torch" if declared.engine == "torch" or why_not else "onnx"
        missing = [name for name in ("torch", "transformers") if runs_on == "torch" and find_spec(name) is None]
        if missing:
            why = why_not or f"{self.composition.where('backbone', 'engine')}: the backbone is to run on torch"
            needs = " and ".join(missing)
            raise SensoriumError(f"{why}; the torch engine runs it, which needs {needs}; {install('torch')}.")
        return runs_on

    def _torch_model(self) -> TorchModel:
        """The model that the engines of text and of media share."""
        from sensorium.backbones.torch_engine import TorchModel

        declared, path = self.composition.spec.backbone, self.composition.backbone_path(progress=self.progress)
        return TorchModel(path, self.backbone.get(), declared.device, declared.dtype, self.threads)

    def _engine(self, changes: Changes) -> Engine:
        if self.runs_on.get() == "torch":
            from sensorium.backbones.torch_engine import TorchEngine

            return TorchEngine(self.torch_model.get(), changes.lora, changes.new_tokens)
        from sensorium.backbones.engine import Engine

        directory = self._graph(changes)
        try:
            return Engine(directory, threads=self.threads)
        except (SensoriumError, ValueError, OSError):
            # Perhaps damaged in the cache behind an unchanged size and time: read all of it before it is used again.
            return Engine(self._graph(changes, doubted=True), threads=self.threads)

    def _graph(self, changes: Changes, *, doubted: bool = False) -> Path:
        """The directory of the quantised graph, written on first use (seconds), and again when it was damaged."""
        from sensorium.backbones.graph_cache import mark_used, prune
        from sensorium.backbones.onnx_graph import WRITER_VERSION, build

        quantization = self.composition.spec.backbone.quantization
        names = ["llm", str(WRITER_VERSION), self.composition.identity("backbone"), quantization]
        names.append(file_sha256(changes.lora) if changes.lora else "bare")
        if changes.new_tokens:
            names += ["new_tokens", file_sha256(changes.new_tokens)]
        directory = hub.cache_dir("graphs") / digest(names)
        if not is_sealed(directory, thorough=doubted):
            with hub.file_lock(directory):
                if not is_sealed(directory, thorough=doubted):
                    remove_stale(directory)
                    self._say(f"Preparing the language model{changes} (once) ...")
                    with hub.atomic_dir(directory) as scratch, self._source() as source:
                        build(
                            source,
                            scratch,
                            quantization=quantization,
                            lora=changes.lora,
                            new_tokens=changes.new_tokens,
                            progress=self._show_layers,
                        )
                        seal(scratch)
                    prune(directory)
        mark_used(directory)
        return directory

    def _encoder(self, modality: str) -> Any:
        create = encoders.create_audio if modality == "speech" else encoders.create
        declared = self.composition.spec.encoders[modality]  # type: ignore[index]
        # A question is short: CTranslate2's second thread waits for the LLM's and costs more than it gives (17 ms with
        # one thread behind an answer, 82 with two, for two seconds of speech).
        threads = self.threads or 1 if modality == "speech" else self.threads
        options = {"threads": threads, **declared.options}
        encoder = create(declared.kind, self._path("encoders", modality), **options)
        # What `features` remembered may come from an older version of the encoder's code: the one that runs decides.
        seams.check_fingerprint(self.composition, seams.part_name(modality), encoder.spec.fingerprint)
        return encoder

    def _features(self, modality: str) -> FeatureSpec:
        def read() -> dict[str, Any]:
            spec = self.encoders[modality].get().spec
            grid = [spec.layout.h, spec.layout.w] if isinstance(spec.layout, Grid) else None
            return {"dim": spec.dim, "grid": grid, "rate_hz": spec.rate_hz, "fingerprint": spec.fingerprint}

        declared = self.composition.spec.encoders[modality]  # type: ignore[index]
        identity = self.composition.identity("encoders", modality)
        names = ["encoder", declared.kind, json.dumps(declared.options, sort_keys=True), identity]
        facts = remembered(names, read, self._trained(seams.part_name(modality)))
        layout = Grid(*facts["grid"]) if facts["grid"] else Sequence()
        return FeatureSpec(facts["dim"], layout, facts["rate_hz"], facts["fingerprint"])

    def _projector(self, modality: str) -> Projector:
        from sensorium.projectors.runtime import Projector

        return Projector(self.composition.file(self.composition.spec.projectors[modality].onnx), self.threads)  # type: ignore[index]

    def _generator(self) -> Any:
        declared = self.composition.spec.generators.get("speech")
        if declared is None:
            return generators.create("hibari")
        path = self._path("generators", "speech") if declared.part else None
        return generators.create(declared.kind, declared.options, path)

    def _output(self) -> UnitProjector | None:
        from sensorium.projectors.units import UnitProjector

        declared = self.composition.spec.output_projectors.get("speech")
        if declared is None:
            return None
        self.composition.check_files(self.composition.output_files)
        projector = UnitProjector(self.composition.file(declared.onnx))
        seams.check_output(self.composition, "speech", projector, self.generator.get(), self.backbone.get())
        return projector

    def _trained(self, part: str) -> str:
        """The fingerprint that the manifest lists for a frozen part, or an empty text."""
        return self.composition.manifest.frozen.get(part, "") if self.composition.manifest else ""

    def _say(self, text: str) -> None:
        if self.progress:
            say(text)

    def _show_layers(self, done: int, total: int) -> None:
        """How far a graph has been written, on a terminal."""
        if self.progress and sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(f"\r{100 * done // total:3d} %" + ("\n" if done == total else ""))
            sys.stderr.flush()


def digest(names: list[str]) -> str:
    """A short, stable name of a cache entry that depends on all of `names` and on this version of the package."""
    return hashlib.sha256("\0".join([__version__, *names]).encode()).hexdigest()[:32]


def remembered(names: list[str], read: Callable[[], dict[str, Any]], fingerprint: str = "") -> dict[str, Any]:
    """Facts about a frozen part that depend on `names` alone: from the cache, or read from the part and kept there.

    Before a part is refused because its fingerprint is not the expected one, it is read again: the cache may be stale.
    """
    path = hub.cache_dir("facts") / f"{digest(names)}.json"
    try:
        facts = dict(json.loads(path.read_bytes()))
        if not fingerprint or facts["fingerprint"] == fingerprint:
            return facts
    except (OSError, ValueError, TypeError, KeyError):
        pass
    facts = read()
    with (
        contextlib.suppress(SensoriumError),
        hub.atomic_write(path, "w") as file,
    ):  # a cache that cannot be written is no loss
        json.dump(facts, file)
    return facts


def _bind(make: Callable[[str], T], modality: str) -> Lazy[T]:
    return Lazy(lambda: make(modality))
