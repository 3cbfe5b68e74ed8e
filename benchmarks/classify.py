"""How `sensorium classify` should score labels: which prior to subtract, how much of it, per token or in all.

    python benchmarks/classify.py [--model NAME|DIR] [--labels 6]

Each development photograph gets one label that is true and others that are not. For every way of scoring: accuracy with
a 95 % interval, and the log-loss at the temperature that fits best. `tasks/classify.py` takes its constants from here;
the test photographs are not touched.
"""

from __future__ import annotations

import argparse
import json
import random
import sys

import numpy as np

import sensorium
from sensorium.evaluation import photos as photographs
from sensorium.messages import Message
from sensorium.tasks import classify

TEMPERATURES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def tasks(labels: int) -> list[tuple[str, list[str]]]:
    """(photograph id, labels), the true label first."""
    rng = random.Random(0)
    words = sorted(photographs.vocabulary())
    chosen = []
    for photo in photographs.photos("dev"):
        true = [word for word in photo.nouns if word in photo.asked_yes] or list(photo.asked_yes)
        possible = {*photo.present, *photo.unsure, *photo.asked_yes, *photo.nouns}
        wrong = [*photo.asked_no, *rng.sample([w for w in words if w not in possible], len(words) // 3)]
        if true:
            chosen.append((photo.id, list(dict.fromkeys([true[0], *wrong]))[:labels]))
    return chosen


def measure(model: sensorium.Model, labels: int) -> dict[str, np.ndarray]:
    """Log-probabilities [n, labels] with the picture, blind, and with a grey picture; and tokens [n, labels]."""
    chosen = tasks(labels)
    wanted = {name for name, _ in chosen}
    files = photographs.fetch_photos([p for p in photographs.photos("dev") if p.id in wanted], missing=sys.stderr.write)
    grey = sensorium.load_image(np.full((64, 64, 3), 127, np.uint8))
    found: dict[str, list] = {"seen": [], "blind": [], "grey": [], "tokens": []}
    for name, words in chosen:
        if name not in files:
            continue
        answers = [classify.as_answer(word) for word in words]
        question = [Message("user", [sensorium.load_image(files[name]), classify.PROMPT])]
        seen = model.score(question, answers)
        found["seen"].append(seen.logprobs)
        found["tokens"].append(seen.tokens)
        found["blind"].append(model.score(question, answers, blind=True).logprobs)
        found["grey"].append(model.score([Message("user", [grey, classify.PROMPT])], answers).logprobs)
    return {key: np.array(values) for key, values in found.items()}


def judge(scores: np.ndarray) -> dict[str, float]:
    """Accuracy with its 95 % Wilson interval, and the best log-loss over temperatures; the true label is column 0."""
    n, accuracy = len(scores), float((scores.argmax(axis=1) == 0).mean())
    z = 1.96
    middle, half = accuracy + z * z / (2 * n), z * np.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    losses = {}
    for temperature in TEMPERATURES:
        scaled = scores / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        losses[temperature] = float((np.log(np.exp(scaled).sum(axis=1)) - scaled[:, 0]).mean())
    best = min(losses, key=lambda temperature: losses[temperature])
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return {"n": n, "accuracy": accuracy, "low": low, "high": high, "log_loss": losses[best], "temperature": best}


def main() -> None:
    """Print a table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--labels", type=int, default=6)
    options = parser.parse_args()
    found = measure(sensorium.load(options.model), options.labels)
    results = {}
    for norm, divisor in (("per token", found["tokens"]), ("in all", np.ones_like(found["tokens"]))):
        for prior in ("blind", "grey"):
            for weight in WEIGHTS if prior == "blind" else WEIGHTS[1:]:
                scores = (found["seen"] - weight * found[prior]) / divisor
                results[f"{norm}, minus {weight:g} x {prior}"] = judge(scores)
    print(f"{options.model}: one true label of {options.labels} (chance {1 / options.labels:.1%})")
    for name, row in results.items():
        interval = f"{row['low']:.1%}..{row['high']:.1%}"
        print(
            f"{name:32s} accuracy {row['accuracy']:6.1%} ({interval}, n={row['n']})  "
            f"log-loss {row['log_loss']:.3f} at temperature {row['temperature']:g}"
        )
    print(json.dumps({"benchmark": "classify", "model": options.model, "results": results}))


if __name__ == "__main__":
    main()
