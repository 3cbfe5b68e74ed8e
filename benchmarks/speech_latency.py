"""End of a two-second spoken question to the first sound of the answer: directly, and through text.

    python benchmarks/speech_latency.py [--model mini] [--rounds 15] [--live] [--json]

Both ways run in one warm process on the same parts, in turns, each question new to both. The cascade is faster-whisper
(tiny.en, int8, greedy, no times), the same LLM, hibari a sentence at a time. With `--live` the question comes from a
microphone in real time, through the turn manager, and the clock runs from the release of the button right behind the
last word (`evaluation/live.py`); else it is a recording that is there at once.

LLaMA-Omni's published figures (arXiv 2409.06666: 226 ms in the first version, 236 ms in the later one) are of an 8B
model on an L40 GPU; this one has 135 M parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform

import sensorium
from sensorium.backbones.threads import physical_cores
from sensorium.errors import SensoriumError
from sensorium.evaluation import latency, live
from sensorium.evaluation.recognisers import no_recogniser
from sensorium.evaluation.suites.speaking import Hear, listener, median
from sensorium.evaluation.suites.speech import measure_latency, two_second_questions


def measure_live(model: sensorium.Model, hear: Hear, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by way and stage (there is one), as `measure_latency` gives them."""
    found: dict[str, dict[str, list[float]]] = {"cascade": {latency.WHOLE: []}, "model": {latency.WHOLE: []}}
    for number, sound in enumerate(two_second_questions(rounds + 1)):
        for way, values in found.items():
            transcribe = (lambda samples: hear(samples, live.RATE)) if way == "cascade" else None
            with contextlib.nullcontext() if way == "cascade" else no_recogniser():
                took = live.first_sound_live(model, sound, transcribe=transcribe)
            if number:  # the first is not counted
                values[latency.WHOLE].append(took)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} measures nothing; give 1 or more.")
    try:
        model = sensorium.load(options.model, threads=options.threads)
    except SensoriumError as error:
        parser.error(str(error))
    measure = measure_live if options.live else measure_latency
    found = measure(model, listener(), options.rounds)
    stages = list(next(iter(found.values())))
    table = {
        way: {stage: median([1000 * seconds for seconds in values[stage]]) for stage in stages}
        for way, values in found.items()
    }
    pairs = zip(found["cascade"][latency.WHOLE], found.get("model", {}).get(latency.WHOLE, []))
    ratio = median([slow / fast for slow, fast in pairs]) if "model" in found else None
    if options.json:
        plain = {
            way: {s: {"ms": round(e.value, 1), "ci95": [round(e.low, 1), round(e.high, 1)]} for s, e in by.items()}
            for way, by in table.items()
        }
        times = ratio and {"times": round(ratio.value, 2), "ci95": [round(ratio.low, 2), round(ratio.high, 2)]}
        facts = {"rounds": options.rounds, "cores": physical_cores(), "machine": platform.machine()}
        print(json.dumps({**facts, **plain, "ratio": times}))
        return
    print(f"medians of {options.rounds} questions in ms, {physical_cores()} cores\n")
    print(f"| {'stage':12} | {' | '.join(f'{way:>22}' for way in table)} |\n|---|{'---|' * len(table)}")
    for stage in stages:
        cells = [f"{e.value:8.1f} [{e.low:5.0f}, {e.high:5.0f}]" for e in (by[stage] for by in table.values())]
        print(f"| {stage:12} | {' | '.join(f'{cell:>22}' for cell in cells)} |")
    if ratio:
        print(f"\nthe direct way is {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] as fast")


if __name__ == "__main__":
    main()
