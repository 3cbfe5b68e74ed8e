"""Cold start: a whole process that answers a question about a picture, beside the same job through transformers.

    python benchmarks/cold_start.py [--runs 9] [--picture FILE] [--question TEXT] [--max-tokens 10] [--peers NAME,...]

Every run is a new process with a warm disk cache: `sensorium ask QUESTION -a PICTURE --max-tokens 10 --ignore-end`,
and a plain script that loads the same weights with `LlamaForCausalLM.from_pretrained` (dequantised, the LoRA merged,
saved once beforehand) in bfloat16 or float32, takes the picture's features from the same encoder, projects them with
torch and calls `generate`. Runs alternate between the programs; wall time and peak memory (`ru_maxrss`) are those of
the process and its children. Answers go on behind their end, so that each program generates exactly as many tokens as
were asked for; the script fails where one does not. Peers need the extras `train` and `dev`;
without them they are left out. The last line is JSON.
"""

# Only the standard library up here: the peer runs in this file, too, and its imports are part of what is measured.
from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import run

QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
PICTURE = Path(__file__).parents[1] / "examples" / "apple.jpg"
QUESTION = "What is in this picture?"


# The peer -------------------------------------------------------------------------------------------------------------


def peer(directory: Path, picture: str, question: str, max_tokens: int, dtype: str) -> None:
    """What a competent person would write with transformers and torch; prints the answer and its tokens as JSON."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from sensorium.encoders import create
    from sensorium.projectors.spec import torch_class

    facts = json.loads((directory / "facts.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(directory / dtype, dtype=getattr(torch, dtype)).eval()
    encoder = create(facts["encoder"]["kind"], Path(facts["encoder"]["weights"]), **facts["encoder"]["options"])
    state = {name: tensor.float() for name, tensor in load_file(facts["projector"]["weights"]).items()}
    options = dict(facts["projector"]["options"])
    if "keys.weight" in state:
        options["concepts"] = len(state["keys.weight"])
    layout: Any = encoder.spec.layout
    kind: Any = torch_class(facts["projector"]["kind"])
    projector = kind(encoder.spec.dim, model.config.hidden_size, (layout.h, layout.w), **options)
    projector.load_state_dict(state)

    import numpy as np

    with torch.inference_mode():
        features = encoder.encode([np.asarray(Image.open(picture).convert("RGB"))])
        embeds = projector.eval()(torch.from_numpy(features)).to(model.dtype)
        start, end = facts["start"], facts["end"]

        def plain(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        before = torch.tensor([[start, *plain("user\n")]])
        after = torch.tensor([[*plain("\n" + question), end, *plain("\n"), start, *plain("assistant\n")]])
        table = model.get_input_embeddings()
        inputs = torch.cat((table(before), embeds, table(after)), dim=1)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        out = model.generate(
            inputs_embeds=inputs, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None,
            pad_token_id=end,
        )  # fmt: skip
    print(json.dumps({"answer": tokenizer.decode(out[0], skip_special_tokens=False), "tokens": len(out[0])}))


def prepare(model: str, directory: Path) -> None:
    """Save what the peer loads: weights in both precisions with the LoRA merged, a tokenizer, where the rest stands."""
    import torch
    from tokenizers import decoders

    from llm_common import transformers_model
    from sensorium import hub
    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.lora import LoRA
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.composition import Composition

    composition = Composition.find(model)
    weights = hub.fetch(composition.part("backbone"))
    llm = transformers_model(weights, "float32")
    with GGUF(weights) as gguf:
        spec, tokenizer = spec_from_gguf(gguf), Tokenizer.from_gguf(gguf)
    if composition.spec.lora:
        lora = LoRA(composition.file(composition.spec.lora.weights), spec)
        with torch.no_grad():
            for i, layer in enumerate(llm.model.layers):
                for block in (layer.self_attn, layer.mlp):
                    for name, linear in block.named_children():
                        if lora.touches(i, name):
                            linear.weight += torch.from_numpy(lora.delta(i, name, interleaved=False))
    llm.save_pretrained(directory / "float32")
    llm.to(torch.bfloat16).save_pretrained(directory / "bfloat16")
    pipeline: Any = tokenizer._algorithm._pipeline  # type: ignore[attr-defined]
    pipeline.decoder = decoders.ByteLevel()
    pipeline.save(str(directory / "tokenizer.json"))
    encoder, projector = composition.spec.encoders["image"], composition.spec.projectors["image"]
    facts = {
        "encoder": {
            "kind": encoder.kind,
            "weights": str(hub.fetch(composition.part("encoders", "image"))),
            "options": encoder.options,
        },
        "projector": {
            "kind": projector.kind,
            "weights": str(composition.file(projector.weights)),
            "options": projector.options,
        },
        "start": tokenizer.special("<|im_start|>"),
        "end": tokenizer.special("<|im_end|>"),
    }
    (directory / "facts.json").write_text(json.dumps(facts))


# Measuring ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--picture", default=str(PICTURE))
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=10)
    parser.add_argument("--peers", default="bfloat16,float32")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.model, args.prepare)
        return
    if args.peer:
        peer(args.peer, args.picture, args.question, args.max_tokens, args.dtype)
        return
    ours = [sys.executable, "-m", "sensorium", "ask", args.question, "-a", args.picture, "--model", args.model]
    ours += ["--max-tokens", str(args.max_tokens), "--ignore-end"]
    commands = {"sensorium": ours}
    with tempfile.TemporaryDirectory() as scratch:
        peers = [name.strip() for name in args.peers.split(",") if name.strip()]
        if peers and importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            # in a process of its own: a child's peak memory starts at its parent's
            run([sys.executable, __file__, "--model", args.model, "--prepare", scratch], QUIET)
            for dtype in peers:
                same = ["--picture", args.picture, "--question", args.question, "--max-tokens", str(args.max_tokens)]
                commands[f"transformers {dtype}"] = [
                    sys.executable,
                    __file__,
                    "--peer",
                    scratch,
                    "--dtype",
                    dtype,
                    *same,
                ]
        told = {name: run(command, QUIET).printed.strip() for name, command in commands.items()}  # warms the disk cache
        usage = json.loads(run([*ours, "--json"], QUIET).printed)["usage"]
        peers_told = {name: json.loads(text.splitlines()[-1]) for name, text in told.items() if name != "sensorium"}
        answers = {"sensorium": told["sensorium"], **{name: said["answer"] for name, said in peers_told.items()}}
        check_tokens(
            {"sensorium": usage["completion_tokens"], **{name: said["tokens"] for name, said in peers_told.items()}},
            args.max_tokens,
        )
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for i in range(args.runs):
            names = list(commands)
            for name in names[i % len(names) :] + names[: i % len(names)]:
                done = run(commands[name], QUIET)
                results[name].append((done.wall_s, done.peak_mb))
    report(results, answers, usage)


def check_tokens(counts: dict[str, int], wanted: int) -> None:
    """End the script with a sentence where a program generated another number of tokens than the others were asked."""
    for name, count in counts.items():
        if count != wanted:
            raise SystemExit(
                f"{name} generated {count} tokens where {wanted} were asked for, so the times cannot be compared; "
                "choose another --question or --max-tokens."
            )


def report(results: dict[str, list[tuple[float, float]]], answers: dict[str, str], tokens: dict[str, int]) -> None:
    from llm_common import machine, median_interval

    runs = len(results["sensorium"])
    print(f"{runs} runs, {tokens['prompt_tokens']} prompt tokens, {tokens['completion_tokens']} answer tokens")
    print(f"{'program':<24}{'seconds':>9}{'95 % interval':>18}{'range':>14}{'peak MB':>9}{'sensorium is':>26}  answer")
    facts: dict[str, Any] = machine(None)
    summary: dict[str, Any] = {"benchmark": "cold_start", "n": runs, "tokens": tokens["completion_tokens"], **facts}
    base = [seconds for seconds, _ in results["sensorium"]]
    for name, measured in results.items():
        seconds, low, high = median_interval([s for s, _ in measured])
        peak = max(memory for _, memory in measured)
        spread = f"{min(s for s, _ in measured):.2f}-{max(s for s, _ in measured):.2f}"
        entry: dict[str, Any] = {"median_s": round(seconds, 3), "median_s_95": [round(low, 3), round(high, 3)]}
        entry["peak_mb"] = round(peak)
        compared = ""
        if name != "sensorium":
            ratio, least, most = median_interval([s / ours for (s, _), ours in zip(measured, base)])
            compared = f"{ratio:.2f} x [{least:.2f}, {most:.2f}] faster"
            memory = max(m for _, m in results["sensorium"])
            entry |= {"ratio": round(ratio, 3), "ratio_95": [round(least, 3), round(most, 3)]}
            entry["memory_ratio"] = round(peak / memory, 3)
        print(
            f"{name:<24}{seconds:>9.2f}{f'[{low:.2f}, {high:.2f}]':>18}{spread:>14}{peak:>9.0f}{compared:>26}  "
            f"{answers[name]!r}"
        )
        summary[name] = entry
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
