"""Decoding speed against llama.cpp and transformers: the same weights, threads, prompt and number of tokens, greedy.

    python benchmarks/decode.py [--model FILE.gguf] [--rounds 7] [--tokens 128] [--threads N] [--peers NAME,...]

Each engine lives in a process of its own that waits without using the processor; rounds alternate between them, so that
a disturbance strikes all alike. A speed is (tokens - 1) / seconds after the first token; a ratio is the median over
rounds of the quotient within a round, with a 95 % bootstrap interval. `transformers` runs the dequantised weights
through `generate`. Needs `xllamacpp` and the extras `train` and `dev`; peers that are not installed are left out. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llm_common import machine, median_interval, model_file, prepare, transformers_model, write_lora
from sensorium.backbones.gguf import GGUF, spec_from_gguf
from sensorium.backbones.threads import physical_cores
from sensorium.backbones.tokenizer import Tokenizer

PROMPT = "Write a long story about a dog and a cat who travel around the world. They begin in a small village"

# A run generates tokens greedily and returns (seconds before the first token, seconds after it).
Run = Callable[[], tuple[float, float]]


def ours(directory: Path, ids: list[int], tokens: int, threads: int) -> Run:
    from sensorium.backbones.engine import Engine, SamplingParams, Segment, Stats

    engine = Engine(directory, threads, prefix_cache_bytes=0)

    def run() -> tuple[float, float]:
        stats = Stats()
        assert sum(1 for _ in engine.generate([Segment(ids=tuple(ids))], SamplingParams(tokens), stats=stats)) == tokens
        return stats.prefill_s, stats.decode_s

    return run


def llama_cpp(path: Path, tokens: int, threads: int) -> Run:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    request = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}

    def run() -> tuple[float, float]:
        timings = server.handle_completions(dict(request))["timings"]
        assert timings["predicted_n"] == tokens
        return timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3

    return run


def transformers(path: Path, ids: list[int], tokens: int, threads: int, dtype: str) -> Run:
    import torch

    torch.set_num_threads(threads)
    model, prompt = transformers_model(path, dtype), torch.tensor([ids])

    def timed(count: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        assert out.shape[1] == len(ids) + count
        return time.perf_counter() - started

    def run() -> tuple[float, float]:
        first = timed(1)
        return first, timed(tokens) - first

    return run


def serve(connection: Connection, threads: int, make: str, arguments: tuple[Any, ...]) -> None:
    """A worker: loads, warms up, then runs once for each message until it is told to stop."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # llama.cpp talks on both standard streams.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        run: Run = globals()[make](*arguments)
        run()
        connection.send(None)
        while connection.recv():
            connection.send(run())
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file (default: the embedded default's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--peers", default="lora,llama.cpp,transformers float32,transformers bfloat16")
    args = parser.parse_args()
    path, tokens, threads = model_file(args.model), args.tokens, args.threads
    with GGUF(path) as gguf:
        ids, spec = Tokenizer.from_gguf(gguf).encode(PROMPT), spec_from_gguf(gguf)
    with tempfile.TemporaryDirectory() as scratch:
        bare = prepare(path, Path(scratch) / "bare", "int8")
        jobs: dict[str, tuple[str, tuple[Any, ...]]] = {"sensorium": ("ours", (bare, ids, tokens, threads))}
        peers = [name.strip() for name in args.peers.split(",") if name.strip()]
        if "lora" in peers:
            lora = write_lora(Path(scratch) / "lora.safetensors", spec)
            merged = prepare(path, Path(scratch) / "merged", "int8", lora)
            jobs["sensorium, LoRA merged"] = ("ours", (merged, ids, tokens, threads))
        if "llama.cpp" in peers and importlib.util.find_spec("xllamacpp"):
            jobs["llama.cpp"] = ("llama_cpp", (path, tokens, threads))
        for name in peers:
            if name.startswith("transformers") and importlib.util.find_spec("torch"):
                jobs[name] = ("transformers", (path, ids, tokens, threads, name.split()[1]))
        results = measure(jobs, args.rounds, threads)
    report(results, len(ids), tokens, args.rounds, machine(threads))


def measure(
    jobs: dict[str, tuple[str, tuple[Any, ...]]], rounds: int, threads: int
) -> dict[str, list[tuple[float, float]]]:
    """(prefill seconds, decode seconds) of each engine in each round."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for name, (make, arguments) in jobs.items():
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, threads, make, arguments), daemon=True).start()
        if problem := here.recv():
            print(f"{name} is left out: {problem}")
        else:
            connections[name] = here
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in connections}
    for i in range(rounds):
        names = list(connections)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            connections[name].send(True)
            results[name].append(connections[name].recv())
    for connection in connections.values():
        connection.send(False)
    return results


def report(
    results: dict[str, list[tuple[float, float]]], prompt: int, tokens: int, rounds: int, facts: dict[str, Any]
) -> None:
    print(f"prompt {prompt} tokens, {tokens} tokens greedy, {rounds} rounds, {facts['threads']} threads")
    print(f"{'engine':<26}{'prefill tok/s':>14}{'decode tok/s':>14}{'range':>16}{'sensorium is':>24}")
    summary: dict[str, Any] = {"benchmark": "decode", "n": rounds, "tokens": tokens, "prompt_tokens": prompt, **facts}
    base = results["sensorium"]
    for name, runs in results.items():
        speeds = [(tokens - 1) / seconds for _, seconds in runs]
        prefill, _, _ = median_interval([prompt / seconds for seconds, _ in runs])
        speed, _, _ = median_interval(speeds)
        ratio, low, high = median_interval([b[1] / a[1] for a, b in zip(base, runs)])
        compared = "" if name == "sensorium" else f"{ratio:.2f} x [{low:.2f}, {high:.2f}]"
        spread = f"{min(speeds):.1f}-{max(speeds):.1f}"
        print(f"{name:<26}{prefill:>14.0f}{speed:>14.1f}{spread:>16}{compared:>24}")
        summary[name] = {"decode_tokens_per_s": round(speed, 1), "prefill_tokens_per_s": round(prefill, 1)}
        if compared:
            summary[name] |= {"ratio": round(ratio, 3), "ratio_95": [round(low, 3), round(high, 3)]}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
