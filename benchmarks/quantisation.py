"""How much the default's four- and eight-bit weights and its activations change the model: perplexity, top-1 agreement.

    python benchmarks/quantisation.py [--model FILE.gguf] [--text FILE]... [--tokens 7680]

The reference is the same GGUF file dequantised to float32 and run by the same engine, which the tests compare with
transformers to within 1e-6. Where prompts are read by a graph of their own, both graphs are measured. Text: two
chapters of the Debian Developer's Reference (plain English), the GNU GPL and the Artistic License (legal English), in
windows of 512 tokens. Intervals are 95 % bootstrap intervals over windows. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from llm_common import machine, model_file, prepare
from sensorium import hub
from sensorium.backbones.engine import Engine, Segment
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.graph_runner import READING
from sensorium.backbones.sampling import log_softmax
from sensorium.backbones.tokenizer import Tokenizer

WINDOW = 512
REFERENCE = {
    "source": "deb:developers-reference=12.18",
    "sha256": "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e",
    "licence": "GPL-2.0-or-later",
}
CHAPTERS = ("developer-duties", "beyond-pkging")
LICENCES = ("GPL-3", "Artistic")


def texts(given: list[str]) -> list[str]:
    """The texts that were given, or the default ones."""
    if given:
        return [Path(name).read_text(encoding="utf-8") for name in given]
    paths = [Path("/usr/share/common-licenses") / name for name in LICENCES]
    for chapter in CHAPTERS:
        file = f"usr/share/developers-reference/_sources/{chapter}.rst.txt"
        paths.append(hub.fetch(hub.Part(file=file, **REFERENCE)))
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]


def windows(tokenizer: Tokenizer, documents: list[str], tokens: int) -> np.ndarray:
    """Ids [n, 512], as many from each document."""
    share = -(-tokens // WINDOW // len(documents))
    rows = []
    for document in documents:
        ids = tokenizer.encode(document)
        rows += [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(min(share, len(ids) // WINDOW))]
    return np.array(rows)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over windows [n, ...]."""
    draws = np.random.default_rng(0).integers(0, len(values), (4000, len(values)))
    low, high = np.quantile(values.mean(axis=1)[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file (default: the embedded default's)")
    parser.add_argument("--text", action="append", default=[], help="a UTF-8 text file; may be repeated")
    parser.add_argument("--tokens", type=int, default=7680, help="how many tokens to predict")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    path = model_file(args.model)
    with GGUF(path) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    ids = windows(tokenizer, texts(args.text), args.tokens)
    count = len(ids) * (WINDOW - 1)
    shape = (len(ids), WINDOW - 1)
    # Per predicted token: the surprise under each graph, whether it would say what the reference does, and KL(reference
    # || graph).
    surprise, agree, divergence = (defaultdict(lambda: np.zeros(shape)) for _ in range(3))
    with tempfile.TemporaryDirectory() as scratch:
        exact, rounded = (
            Engine(prepare(path, Path(scratch) / name, name), args.threads, prefix_cache_bytes=0)
            for name in ("fp32", "int8")
        )
        graphs = {"decoding": True, **({"prompts": False} if (Path(scratch) / "int8" / READING).exists() else {})}
        for i, row in enumerate(ids):
            prompt, said = [Segment(ids=tuple(row))], (np.arange(WINDOW - 1), row[1:])
            wanted = log_softmax(exact.logits(prompt)[:-1])
            surprise["exact"][i] = -wanted[said]
            for name, decoding in graphs.items():
                found = log_softmax(rounded.logits(prompt, decoding=decoding)[:-1])
                surprise[name][i] = -found[said]
                agree[name][i] = wanted.argmax(-1) == found.argmax(-1)
                divergence[name][i] = (np.exp(wanted) * (wanted - found)).sum(-1)
    perplexity = {name: float(np.exp(values.mean())) for name, values in surprise.items()}
    print(f"{count} tokens in {len(ids)} windows of {WINDOW}; {path.name}")
    print(f"{'graph':<22}{'perplexity':>11}{'change':>24}{'top-1 agreement':>26}{'KL (nats)':>11}")
    print(f"{'dequantised, float32':<22}{perplexity['exact']:>11.3f}")
    results = {}
    for name in graphs:
        change = 100 * (np.exp(np.array(interval(surprise[name] - surprise["exact"]))) - 1)
        relative = 100 * (perplexity[name] / perplexity["exact"] - 1)
        same, equal, apart = interval(agree[name]), float(agree[name].mean()), float(divergence[name].mean())
        print(
            f"{f'rounded, {name}':<22}{perplexity[name]:>11.3f}"
            f"{f'{relative:+.2f} % [{change[0]:+.2f}, {change[1]:+.2f}]':>24}"
            f"{f'{equal:.4f} [{same[0]:.4f}, {same[1]:.4f}]':>26}{apart:>11.4f}"
        )
        results[name] = {
            "perplexity_int8": round(perplexity[name], 4),
            "perplexity_change_percent": round(relative, 3),
            "perplexity_change_95": [round(float(v), 3) for v in change],
            "top1_agreement": round(equal, 4),
            "top1_agreement_95": [round(v, 4) for v in same],
            "kl_nats": round(apart, 5),
        }
    result = {
        "benchmark": "quantisation",
        "n": count,
        "windows": len(ids),
        "perplexity_float32": round(perplexity["exact"], 4),
        **results.pop("decoding"),
        **results,
        **machine(args.threads),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
