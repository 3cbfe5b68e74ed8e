"""Projector training: samples a second against a plain transformers loop, and what each measure gives.

    python benchmarks/train.py [--rounds 4] [--steps 2] [--pictures 5] [--threads 1] [--core]

A sample is a picture, a question and its answer. Samples, frozen parts, projector (`mlp`) and its start, AdamW, rates,
bfloat16 and threads are the same for all. A step has the same samples, so its loss must be the same too (printed). The
pictures and questions are those of `recipes/mini-image-projector.yaml`: each picture comes with as many questions as
fit a row of the recipe, some seven. A step is what one of the recipe's two processes has of it: five pictures, one
thread that keeps to one core, so that what is made ahead takes its time from the step as well.

The peer (`train_peer.py`) is LLaVA-style: a row a sample, padded, the encoder at each step, all logits. Its attention
(sdpa or eager) and the size of its micro-batches are tried beforehand, the fastest taken. Its encoder is torch's in
bfloat16 (faster here than ONNX Runtime's in float32, which fills our cache).

*Cold* is the first epoch of a run: no picture is in the feature cache, each is encoded once, when its questions come,
and is written to the cache. *Warm* is every epoch after it. Rounds alternate between the loops; those of the second
table run in every other round. A ratio is the median over rounds of the quotient within a round, with a 95 % bootstrap
interval. Seconds are those of the processor, so that other work on the machine counts for little (`busy` is the least
share of its core that a loop had; with more threads than one they are those of the clock). What is compiled or loaded
once a run stays outside the measurement, for all alike. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from efficientnet_torch import EfficientNet
from llm_common import machine, median_interval, transformers_model
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.spec import spec_from_gguf
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.projectors.spec import tokens_for, torch_class
from sensorium.training.backbone import load_llama
from sensorium.training.features import EncoderPart
from sensorium.training.frozen import obtain
from sensorium.training.recipe import load_recipe
from train_ours import WITHOUT, Ours, Parts, Steps
from train_peer import Peer
from train_samples import draw, in_steps

RECIPE = Path(__file__).parents[1] / "recipes" / "mini-image-projector.yaml"
PEER, COLD, WARM = "peer", "Sensorium, cold", "Sensorium, warm"
PEERS = {
    "peer, each picture encoded once a step": {"once": True},
    "peer, a graph through the encoder": {"graph": True},
    "peer, a picture's questions as turns of one conversation (other losses)": {"turns": True},
}


def choose(parts: Parts, llm: Any, encoder: nn.Module, samples: int, trial: Steps) -> Peer:
    """The peer with the attention and the micro-batches that take the least time on a step."""
    resolution, tried = parts.encoder.create().resolution, {}
    for attention in ("sdpa", "eager"):
        for micro in (8, 16, samples):
            llm.set_attn_implementation(attention)
            peer = Peer(llm, encoder, parts, resolution, micro)
            if not tried:
                peer.run(trial)
            began = time.process_time()
            peer.run(trial)
            tried[time.process_time() - began, attention, micro] = peer
    seconds = ", ".join(f"{a} in micro-batches of {m}: {s:.2f} s" for s, a, m in sorted(tried))
    print(f"The peer's step, {seconds}.", flush=True)
    _, attention, _ = best = min(tried)
    llm.set_attn_implementation(attention)
    return tried[best]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps of a loop in a round")
    parser.add_argument("--pictures", type=int, default=5, help="pictures a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", action="store_true", help="leave out the second table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.manual_seed(0)
    torch._dynamo.config.automatic_dynamic_shapes = False  # each loop keeps to a shape of its own
    recipe = load_recipe(RECIPE, [])
    frozen = obtain(recipe)
    declared = frozen.composition.spec.encoders["image"]
    with GGUF(frozen.weights) as gguf:
        spec, tokenizer = spec_from_gguf(gguf), Tokenizer.from_gguf(gguf)
        llm = load_llama(gguf, spec, None)
    for block in llm.blocks:
        block.compile()
    theirs = transformers_model(frozen.weights, "bfloat16").requires_grad_(False)
    exact = EfficientNet(int(declared.kind[-1]), frozen.encoder)
    encoder = copy.deepcopy(exact).bfloat16().to(memory_format=torch.channels_last)
    options = {"pool": 2}
    start = torch_class("mlp")(frozen.features.dim, spec.dim, frozen.grid, **options)
    parts = Parts(recipe.train, start, EncoderPart(declared.kind, frozen.encoder, declared.options))
    with tempfile.TemporaryDirectory() as scratch:
        root, count = Path(scratch), args.pictures * (1 + args.steps * args.rounds)
        media = tokens_for("mlp", options, frozen.features)
        assert isinstance(media, int)
        shown = draw(recipe, frozen, tokenizer, media, root, count)
        first, *rest = in_steps(shown, args.pictures)
        rounds = [rest[at : at + args.steps] for at in range(0, len(rest), args.steps)]
        number = sum(len(one.branches) for one in shown)
        print(f"{count} pictures with {number} samples in {len(rest) + 1} steps, the first to warm up.", flush=True)
        peer = choose(parts, theirs, encoder, max(sum(len(one.branches) for one in step) for step in rest), [first])
        warm = Ours(parts, llm, root / "cache")
        warm.features([one.medium for one in shown])
        loops: dict[str, Any] = {PEER: peer.run, WARM: warm.run}
        further: dict[str, Any] = {}
        if not args.core:
            further |= {
                name: Peer(theirs, copy.deepcopy(encoder), parts, peer.resolution, peer.micro, **change).run
                for name, change in PEERS.items()
            }
            for key, name in WITHOUT.items():
                ours = Ours(parts, llm, root / "cache", key)
                ours.settle([first, *rest])
                further[name] = ours.run
        began = time.process_time()
        for run in [*loops.values(), *further.values()]:
            run([first])
        print(f"Warmed up and compiled in {time.process_time() - began:.0f} s.", flush=True)
        alike = Peer(theirs, exact, parts, peer.resolution, peer.micro).run(rounds[0][:1], False)
        busy: list[float] = []
        losses: dict[str, list[list[float]]] = {PEER: [], WARM: []}
        loops[COLD] = None
        speeds: dict[str, list[float]] = {name: [] for name in [PEER, COLD, WARM, *further]}
        for i, steps in enumerate(rounds):
            names = [*loops, *(further if i % 2 or len(rounds) == 1 else {})]
            samples = sum(len(one.branches) for step in steps for one in step)
            for name in names[i % len(names) :] + names[: i % len(names)]:
                run = {**loops, **further}[name] or begin_cold(parts, llm, root / f"cold{i}", first)
                began, used = time.perf_counter(), time.process_time()
                found = run(steps)
                seconds, used = time.perf_counter() - began, time.process_time() - used
                speeds[name].append(samples / (used if args.threads == 1 else seconds))
                busy.append(used / seconds / args.threads)
                losses.get(name, []).append(found)
            said = ", ".join(f"{name} {speeds[name][-1]:.1f}" for name in names)
            print(f"Round {i + 1}, samples a second: {said}; busy {min(busy):.0%}.", flush=True)
    pairs = [(a, b) for ours, theirs in zip(losses[WARM], losses[PEER]) for a, b in zip(theirs, ours)]
    said = ", ".join(f"{a:.4f} / {b:.4f}" for a, b in pairs)
    print(f"\nLosses of the same samples, peer / Sensorium: {said}.")
    print(f"The first with the peer's encoder in float32 as ours: {alike[0]:.4f} / {pairs[0][1]:.4f}.\n", flush=True)
    checks = {
        "losses_differ_by": round(max(abs(a - b) / a for a, b in pairs), 5),
        "with_float32_encoder": round(abs(alike[0] / pairs[0][1] - 1), 5),
        "busy": round(min(busy), 3),
    }
    report(speeds, args, checks)


def begin_cold(parts: Parts, llm: Any, root: Path, other: Any) -> Callable[[Steps], list[float]]:
    """A run with an empty cache, whose encoder is open."""
    ours = Ours(parts, llm, root)
    ours.features([other[0].medium])
    return ours.run


def report(speeds: dict[str, list[float]], args: Any, checks: dict[str, float]) -> None:
    """Print the tables and the line of JSON."""
    rows: dict[str, Any] = {}
    paired = [i for i in range(args.rounds) if i % 2 or args.rounds == 1]  # the rounds of the second table
    for name, values in speeds.items():
        if values:
            row = rows[name] = {"samples_per_s": round(float(np.median(values)), 2)}
            for base in (PEER, WARM):
                others = speeds[base] if len(values) == args.rounds else [speeds[base][i] for i in paired]
                row[f"of {base}"] = [round(v, 3) for v in median_interval(np.array(values) / np.array(others))]
    print("| loop | samples a second | times the peer |\n|---|---|---|")
    for name in (PEER, COLD, WARM):
        middle, low, high = rows[name][f"of {PEER}"]
        print(f"| {name} | {rows[name]['samples_per_s']:.1f} | {middle:.2f} [{low:.2f}, {high:.2f}] |")
    if not args.core:
        print("\n| one thing changed | samples a second | times the peer | of Sensorium, warm |\n|---|---|---|---|")
        for name, row in rows.items():
            if name not in (PEER, COLD, WARM):
                times, of = row[f"of {PEER}"][0], row[f"of {WARM}"][0]
                print(f"| {name} | {row['samples_per_s']:.1f} | {times:.2f} | {of:.0%} |")
    facts = {**machine(args.threads), "torch": torch.__version__, "rounds": args.rounds, "steps": args.steps}
    line = {"warm": rows[WARM][f"of {PEER}"], "cold": rows[COLD][f"of {PEER}"], **checks}
    print(json.dumps({**line, "rows": rows, "machine": facts}))


if __name__ == "__main__":
    main()
