"""End of a two-second spoken question to the first sound of the answer: directly, and through text.

    python benchmarks/speech_latency.py [--model mini] [--rounds 15] [--json]

Both ways run in one warm process on the same parts, in turns, each question new to both. The cascade is faster-whisper
(tiny.en, int8, greedy, no times), the same LLM, hibari a sentence at a time. LLaMA-Omni's published figures (arXiv
2409.06666: 226 ms in the first version, 236 ms in the later one) are of an 8B model on an L40 GPU; this one has 135 M
parameters.
"""

from __future__ import annotations

import argparse
import json
import platform

import sensorium
from sensorium.backbones.threads import physical_cores
from sensorium.evaluation import latency
from sensorium.evaluation.suites.speaking import listener, median
from sensorium.evaluation.suites.speech import measure_latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = sensorium.load(options.model, threads=options.threads)
    found = measure_latency(model, listener(), options.rounds)
    table = {
        way: {
            stage: median([1000 * seconds for seconds in values[stage]]) for stage in (*latency.STAGES, latency.WHOLE)
        }
        for way, values in found.items()
    }
    if options.json:
        plain = {
            way: {s: {"ms": round(e.value, 1), "ci95": [round(e.low, 1), round(e.high, 1)]} for s, e in stages.items()}
            for way, stages in table.items()
        }
        print(json.dumps({"rounds": options.rounds, "cores": physical_cores(), "machine": platform.machine(), **plain}))
        return
    print(f"medians of {options.rounds} questions in ms, {physical_cores()} cores\n")
    print(f"| {'stage':12} | {' | '.join(f'{way:>22}' for way in table)} |\n|---|{'---|' * len(table)}")
    for stage in (*latency.STAGES, latency.WHOLE):
        cells = [f"{e.value:8.1f} [{e.low:5.0f}, {e.high:5.0f}]" for e in (stages[stage] for stages in table.values())]
        print(f"| {stage:12} | {' | '.join(f'{cell:>22}' for cell in cells)} |")
    if "model" in table:
        pairs = zip(found["cascade"][latency.WHOLE], found["model"][latency.WHOLE])
        ratio = median([slow / fast for slow, fast in pairs])
        print(f"\nthe direct way is {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] as fast")


if __name__ == "__main__":
    main()
