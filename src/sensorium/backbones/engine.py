"""The language-model engine: prompts of token ids and embeddings in, tokens and log-probabilities out.

    engine = Engine(directory)                       # what onnx_graph.build wrote
    for step in engine.generate([Segment(ids=ids)], SamplingParams(max_tokens=64)):
        ...

A prompt is prefilled one sequence at a time, in chunks; what earlier prompts had in common with it comes from the
prefix cache. Decoding then runs all sequences of a batch together. An engine may be shared by threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.embeddings import Lookup, opened
from sensorium.backbones.graph_runner import READING, GraphRunner
from sensorium.backbones.onnx_graph import read_facts
from sensorium.backbones.prefix_cache import Codes, PrefixCache
from sensorium.backbones.runner import Binding, Cache, Runner
from sensorium.backbones.sampling import Sampler, SamplingParams, log_softmax, log_total
from sensorium.backbones.segments import Joined, Prompt, Segment, join
from sensorium.backbones.spec import BackboneSpec
from sensorium.errors import UsageError

__all__ = ["Engine", "Prompt", "SamplingParams", "Segment", "Stats", "Step"]

Floats = NDArray[np.float32]
Finish = Literal["stop", "length", "cancelled"]

# Prefill in pieces of this many positions: large enough to be efficient, small enough that a cancellation is noticed
# soon and that attention's scratch memory (heads x piece x capacity) stays small.
CHUNK = 512
LOGITS = ("logits",)
# Room for this many generated positions is made at once.
_HEADROOM = 256


@dataclass(frozen=True)
class Step:
    """One generated token. `logprob` is its natural-log probability under the model; `top` the likeliest tokens, if
    asked for. The last step has `finish`: a stop token ("stop"; the token is that stop token), the limit on tokens or
    the end of the context ("length"), or `cancel` was set ("cancelled"; the token is still valid).

    `hidden` float32 [dim], if asked for, is the state that the token was chosen from, as `Engine.hidden_states` gives
    it at the position before the token: it has read everything before the token, and not the token itself. Output
    projectors learn from the same pairs of state and token."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    finish: Finish | None = None
    hidden: Floats | None = None


@dataclass
class Stats:
    """Seconds and tokens of one call: `cached_tokens` of the `prompt_tokens` came from the prefix cache."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; the first token belongs to the prefill."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 and self.generated_tokens > 1 else 0.0


class _Cancelled(Exception):
    """Raised between two chunks of a prefill."""


class Engine:
    """A language model ready to run.

    Args:
        model_dir: a directory that `onnx_graph.build` wrote.
        threads: threads of the graph; None for one per physical core this process may use.
        prefix_cache_bytes: how much memory earlier prompts may take; 0 turns the prefix cache off.

    Attributes:
        spec: the model's `BackboneSpec`.
        context: the most positions of a prompt and its answer together.
        quantization: "int8" or "fp32".
        stats: of the latest call (of any thread).

    Raises:
        SensoriumError: the directory is damaged or of another version.
    """

    def __init__(self, model_dir: Path, threads: int | None = None, prefix_cache_bytes: int = 256 << 20) -> None:
        facts = read_facts(model_dir)
        spec = facts["spec"]
        embed = opened(model_dir / "weights.bin", facts["embeddings"], spec.vocab, spec.dim)
        with ThreadPoolExecutor(1) as pool:  # both graphs are opened at once
            reading = pool.submit(GraphRunner, model_dir, spec, threads, READING) if facts["reading"] else None
            runner = GraphRunner(model_dir, spec, threads)
        reader = reading.result() if reading else None
        self._begin(spec, facts["quantization"], facts["context"], embed, runner, prefix_cache_bytes, reader)

    def _begin(
        self,
        spec: BackboneSpec,
        quantization: str,
        context: int,
        embed: Lookup,
        runner: Runner,
        prefix_bytes: int,
        reader: Runner | None = None,
    ) -> None:
        self.spec, self.quantization, self.context = spec, quantization, context
        self.stats = Stats()
        # Prompts, and nothing else, are read by the reader: their bits must not depend on what is cached of them.
        self._embed, self._runner, self._reader = embed, runner, reader or runner
        self._prefixes = PrefixCache(prefix_bytes)

    # -- prompts ------------------------------------------------------------------------------------------------

    def embed(self, ids: Sequence[int]) -> Floats:
        """Embeddings float32 [n, dim] of token ids. Raises UsageError for an id outside the vocabulary."""
        rows = np.asarray(ids, np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.spec.vocab:
            raise UsageError(
                f"The ids hold {rows.min()} to {rows.max()}; the vocabulary has 0 to {self.spec.vocab - 1}."
            )
        return self._embed(rows)

    def prompt_length(self, prompt: Prompt) -> int:
        """How many positions a prompt takes."""
        return sum(len(segment) for segment in prompt)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        cancel: threading.Event | None = None,
        stats: Stats | None = None,
        hidden: bool = False,
    ) -> Iterator[Step]:
        """Continue a prompt, token by token.

        Args:
            prompt: at least one position, at most `context`.
            cancel: set it from another thread to end early. If it is set before the first token, there is no step.
            stats: filled while generating; `self.stats` is the latest call's.
            hidden: whether steps carry their hidden states.

        Raises:
            UsageError: the prompt is empty, malformed or longer than the context (at once, not at the first step).
        """
        steps = self.generate_batch([prompt], params, cancel, stats, hidden)
        return (step for (step,) in steps if step is not None)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        cancel: threading.Event | None = None,
        stats: Stats | None = None,
        hidden: bool = False,
    ) -> Iterator[list[Step | None]]:
        """Continue several prompts together; each step gives one entry per prompt, None where that one has finished.

        Prompts may differ in length, and `params` be one for all or one each. Every sequence gets the tokens that it
        would get alone.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts came with {len(each)} sampling parameters; give one each.")
        inputs = [self._joined(prompt) for prompt in prompts]
        self.stats = stats if stats is not None else Stats()
        return self._generate(inputs, each, cancel, self.stats, hidden)

    def score(self, prompt: Prompt, choices: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """log P(choice | prompt), float64 [K], of K continuations, each of one token or more, from one prefill.

        Raises:
            UsageError: there is no choice, one is empty, or prompt and choice exceed the context.
        """
        if not choices or not all(len(choice) for choice in choices):
            raise UsageError("The choices to score are empty; give at least one, each of at least one token.")
        source = self._joined(prompt, room=max(map(len, choices)) - 1)
        for choice in choices:
            self.embed(choice)  # refuses ids outside the vocabulary before any work
        self.stats = stats = Stats()
        length = len(source.embeds)
        cache, (logits, *_) = self._prefill(source, stats, None, length + max(map(len, choices)))
        started = time.perf_counter()
        # Choices in alphabetical order, so to speak: one that begins like the one before goes on from there. After
        # `rows[i]`, the next position is that of path[i]; the cache is simply overwritten from where paths part.
        path: list[int] = []
        rows = [logits]
        scores = np.zeros(len(choices))
        for k in sorted(range(len(choices)), key=lambda k: tuple(choices[k])):
            *inner, _ = choice = [int(token) for token in choices[k]]
            shared = next((i for i, (a, b) in enumerate(zip(path, inner)) if a != b), min(len(path), len(inner)))
            if shared < len(inner):
                cache.lengths[0] = length + shared
                path = inner
                rows[shared + 1 :] = self._read(
                    self._runner, cache, self._embed(inner[shared:]), LOGITS, len(inner) - shared
                )[0]
            scores[k] = sum(float(row[token]) - log_total(row) for row, token in zip(rows, choice))
        stats.decode_s = time.perf_counter() - started
        return scores

    def next_logprobs(self, prompt: Prompt) -> Floats:
        """Natural-log probabilities float32 [vocab] of the token after the prompt."""
        source = self._joined(prompt)
        self.stats = Stats()
        _, (logits, *_) = self._prefill(source, self.stats, None, len(source.embeds))
        return log_softmax(logits)

    def logits(self, prompt: Prompt, *, decoding: bool = False) -> Floats:
        """Logits float32 [n, vocab] after each position of the prompt (the prefix cache is not used).

        Args:
            decoding: of the graph that decodes, where another one reads prompts.
        """
        return self._everywhere(self._runner if decoding else self._reader, prompt, "logits")

    def hidden_states(self, prompt: Prompt) -> Floats:
        """Hidden states float32 [n, dim] at each position, after the last norm (what the output head sees)."""
        return self._everywhere(self._reader, prompt, "hidden")

    def clear_cache(self) -> None:
        """Forget earlier prompts."""
        self._prefixes.clear()

    # -- inside -------------------------------------------------------------------------------------------------

    def _joined(self, prompt: Prompt, room: int = 0) -> Joined:
        return join(prompt, self.embed, self.spec.dim, self.context, room)

    def _prefill(
        self,
        source: Joined,
        stats: Stats,
        cancel: threading.Event | None,
        capacity: int,
        outputs: tuple[str, ...] = LOGITS,
    ) -> tuple[Cache, list[Floats]]:
        """A cache that holds the prompt, and the outputs float32 [width] after it."""
        started = time.perf_counter()
        cache = self._runner.cache(1, capacity + 1)
        count = len(source.embeds)
        # The last position is always computed, because its logits are wanted.
        known = self._prefixes.find(source.codes[:-1])
        if known is not None:
            cache.write(0, known)
        start = int(cache.lengths[0])
        stats.prompt_tokens += count
        stats.cached_tokens += start
        found: list[Floats] = []
        while start < count:
            if cancel is not None and cancel.is_set():
                raise _Cancelled
            end = min(count, start + CHUNK)
            found = self._read(self._reader, cache, source.embeds[start:end], outputs, 1 if end == count else 0)
            start = end
        self._remember(source.codes, cache)
        stats.prefill_s += time.perf_counter() - started
        return cache, [values[0] for values in found]

    def _generate(
        self,
        inputs: list[Joined],
        params: list[SamplingParams],
        cancel: threading.Event | None,
        stats: Stats,
        hidden: bool,
    ) -> Iterator[list[Step | None]]:
        outputs = (*LOGITS, "hidden") if hidden else LOGITS
        sequences: list[_Sequence] = []
        shared: Cache | None = None
        for i, (source, chosen) in enumerate(zip(inputs, params)):
            length = len(source.embeds)
            limit = min(chosen.max_tokens, self.context - length + 1)
            try:
                cache, found = self._prefill(source, stats, cancel, length + min(limit, _HEADROOM), outputs)
            except _Cancelled:
                return
            state = found[1] if hidden else None
            sequences.append(_Sequence(chosen, Sampler(chosen, self.spec.vocab, source.ids), limit, found[0], state))
            if len(inputs) == 1:
                shared = cache
            else:
                # The caches of all prompts in one; a prompt's own is let go at once.
                shared = shared or self._runner.cache(len(inputs), cache.capacity)
                shared.adopt(i, cache)
        if shared is not None:
            yield from self._decode(sequences, shared, cancel, stats, outputs)

    def _decode(
        self,
        sequences: list[_Sequence],
        cache: Cache,
        cancel: threading.Event | None,
        stats: Stats,
        outputs: tuple[str, ...],
    ) -> Iterator[list[Step | None]]:
        running = list(sequences)
        binding: Binding | None = None
        while True:
            started = time.perf_counter()
            cancelled = cancel is not None and cancel.is_set()
            steps = {id(sequence): sequence.choose(cancelled) for sequence in running}
            stats.generated_tokens += len(running)
            stats.decode_s += time.perf_counter() - started
            yield [steps.get(id(sequence)) for sequence in sequences]
            started = time.perf_counter()
            going = [row for row, sequence in enumerate(running) if not sequence.finished]
            if not going:
                return
            if len(going) < len(running):
                cache.keep(going)
                running = [running[row] for row in going]
                binding = None
            if binding is None:
                binding = self._runner.binding(cache, 1, 1, outputs)
            binding.embeds[:, 0] = self._embed([sequence.tokens[-1] for sequence in running])
            binding.step()
            logits = binding.outputs["logits"]
            for row, sequence in enumerate(running):
                sequence.logits = logits[row, 0]
                if "hidden" in outputs:
                    sequence.hidden = binding.outputs["hidden"][row, 0].copy()
            stats.decode_s += time.perf_counter() - started

    def _remember(self, codes: Codes, cache: Cache) -> None:
        """Keeps a prompt for later ones that begin like it."""
        if self._prefixes.wants(codes, cache.nbytes_per_position):
            self._prefixes.add(codes, cache.read(0, len(codes)))

    def _everywhere(self, runner: Runner, prompt: Prompt, output: str) -> Floats:
        source = self._joined(prompt)
        cache = runner.cache(1, len(source.embeds) + 1)
        chunks = [source.embeds[i : i + CHUNK] for i in range(0, len(source.embeds), CHUNK)]
        return np.concatenate([self._read(runner, cache, chunk, (output,), len(chunk))[0] for chunk in chunks])

    def _read(
        self, runner: Runner, cache: Cache, embeds: Floats, outputs: tuple[str, ...], chosen: int
    ) -> list[Floats]:
        """Appends several positions to a cache of one sequence; outputs [chosen, width] at the last of them.

        An odd number of positions is padded to an even one. Attention works in blocks of an even number of positions,
        and a block with a single one in it takes another path, which rounds differently: then the same prompt would
        give other bits when its beginning comes from the prefix cache. (For that reason, too, what was generated one
        by one is never put into the prefix cache.)
        """
        count = len(embeds)
        padding = count % 2 if int(cache.lengths[0]) + count < self.context else 0
        binding = runner.binding(cache, count + padding, chosen + padding if chosen else 0, outputs)
        binding.embeds[0, :count] = embeds
        binding.embeds[0, count:] = 0
        binding.step(padding)
        return [binding.outputs[name][0, :chosen] for name in outputs]


@dataclass
class _Sequence:
    """One sequence of a batch, with the logits float32 [vocab] of its next token, and the state they came from."""

    params: SamplingParams
    sampler: Sampler
    limit: int
    logits: Floats
    hidden: Floats | None = None
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    def choose(self, cancelled: bool) -> Step:
        choice = self.sampler(self.logits)
        self.tokens.append(choice.token)
        finish: Finish | None = None
        if choice.token in self.params.stop_ids:
            finish = "stop"
        elif cancelled:
            finish = "cancelled"
        elif len(self.tokens) >= self.limit:
            finish = "length"
        self.finished = finish is not None
        return Step(choice.token, choice.logprob, choice.top, finish, self.hidden)
