"""What dividing a backbone among two processes saves and costs: `python benchmarks/sharding.py MODEL.gguf`.

Prints, for a whole and for a divided backbone, the frozen weights that each process holds in its blocks and the seconds
of a forward and backward pass over two rows of 160 tokens (the least of five). Two processes on this machine, gloo.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sensorium.backbones.gguf import GGUF
from sensorium.backbones.spec import spec_from_gguf
from sensorium.projectors.mlp import MLPProjector
from sensorium.training.backbone import load_llama
from sensorium.training.recipe import LoraRecipe
from sensorium.training.sharding import Sharded, mine

ROWS, LENGTH, TARGETS, ROUNDS, RANKS = 2, 160, 40, 5, 2


def measure(rank: int, meeting: str, path: str, divided: bool, results: Any) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    with GGUF(Path(path)) as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), LoraRecipe(rank=16, alpha=32.0), torch.bfloat16)
    projector = MLPProjector(64, llm.shape.dim, (8, 8), hidden=64)
    if divided:
        Sharded(llm, projector, torch.device("cpu"))
    held = sum(mine(p).numel() * p.element_size() for p in llm.blocks.parameters() if not p.requires_grad)
    whole = sum(p.numel() * p.element_size() for n, p in llm.named_parameters() if not n.startswith("blocks."))
    positions = torch.arange(LENGTH)[None]
    ids = positions.repeat(ROWS, 1)
    mask = torch.full((LENGTH, LENGTH), -1e4, dtype=llm.dtype).triu(1)[None, None]
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        hidden = llm(llm.embed(ids), positions, mask)
        llm.logits(hidden[0, :TARGETS]).logsumexp(-1).mean().backward()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        results.put({"blocks_mb": held / 1e6, "embedding_and_head_mb": whole / 1e6, "step_s": min(seconds)})
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Both ways, one behind the other."""
    context = multiprocessing.get_context("spawn")
    for divided in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            results = context.SimpleQueue()
            given = (f"{scratch}/meeting", sys.argv[1], divided, results)
            processes = [context.Process(target=measure, args=(rank, *given)) for rank in range(RANKS)]
            for process in processes:
                process.start()
            found = results.get()
            for process in processes:
                process.join()
        print(json.dumps({"divided": divided, **{name: round(value, 2) for name, value in found.items()}}))


if __name__ == "__main__":
    main()
