"""Does a larger language model see better? One recipe, the same features and data, several backbones.

    python benchmarks/backbones.py [--backbones smollm2-135m gemma3-270m] [--steps 300] [--seeds 0 1] [--lora 16]

Every backbone is trained from the recipe with `--set backbone=NAME` and asked about the development photographs and
about scenes of objects that training never showed; nothing was chosen by their answers. For each measure: its value
with a 95 % interval, what the same model says without a picture (blind), and the paired difference to the first
backbone, over all seeds, with whole pictures resampled. A run that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import sensorium
from sensorium.evaluation import measures, photos, scenes
from sensorium.evaluation.items import EvalItem, Outcome
from sensorium.evaluation.subjects import ModelSubject
from sensorium.evaluation.suites import image
from sensorium.training.data.catalogue import registry_catalogue
from sensorium.training.data.scenes import load_items
from sensorium.training.run import train

MEASURES: dict[str, tuple[str, measures.Measure]] = {
    "yes/no, AUC": ("yesno", measures.yes_no_auc),
    "yes/no, balanced accuracy": ("yesno", measures.yes_no_balanced()),
    "caption names the main thing": ("caption", measures.noun_hit),
}
KINDS = {"photo": "photographs", "scene": "scenes"}
SEED = 1  # of the scenes; those of the published scorecard have another
Answers = dict[str, list[Outcome]]


def questions(pictures: int) -> list[EvalItem]:
    """Yes/no and caption items about photographs and ``pictures`` scenes; yes/no by margin alone, which is quick."""
    wanted, scenery = photos.photos("dev"), photos.ground_photos()
    files = photos.fetch_photos([*wanted, *scenery])
    items = photos.photo_items(wanted, files)
    rows = load_items(registry_catalogue())
    trained = {word for row in rows if row.split == "train" for word in (row.name, *row.also)}
    unseen = [row for row in rows if row.split == "test"]
    sizes, grounds = scenes.Sizes(pictures, 0, 0, 0, 0, 0), scenes.ground_items(scenery, files)
    items += scenes.scene_items(unseen, trained, sizes, SEED, grounds)
    return [dataclasses.replace(item, generate=False) for item in items if item.meta["kind"] in KINDS]


def composition(recipe: Path, backbone: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Train one backbone, or find what was trained."""
    lora = f"lora{arguments.lora}" if arguments.lora else "projector"
    output = arguments.output / f"{lora}-{backbone}-{seed}".replace("/", "_").replace(":", "_")
    if (output / "done.json").is_file():
        return output / "composition"
    changes = {
        "backbone": backbone, "name": output.name, "output": output, "evaluate": "null", "train.steps": arguments.steps,
        "train.minutes": "null", "train.seed": seed, "train.processes": arguments.processes,
        **({"lora.rank": arguments.lora} if arguments.lora else {}),
    }  # fmt: skip
    resume = output if (output / "recipe.yaml").is_file() and (output / "checkpoint.safetensors").is_file() else None
    return train(recipe, [f"{key}={value}" for key, value in changes.items()], resume)


def ask(trained: Path, items: Sequence[EvalItem]) -> Answers:
    """The outcomes of a composition with its picture, and blind."""
    outcomes = image.collect(ModelSubject(sensorium.load(trained)), items)
    return {column: outcomes[column] for column in ("model", "blind")}


def compare(items: Sequence[EvalItem], answers: dict[str, list[Answers]]) -> list[dict[str, Any]]:
    """A row for each measure and backbone; the seeds' answers about one picture are one cluster."""
    rows, first = [], next(iter(answers))
    for (kind, section), (name, (task, measure)) in product(KINDS.items(), MEASURES.items()):
        chosen = [at for at, item in enumerate(items) if item.task == task and item.meta["kind"] == kind]
        measured = {
            (backbone, column): measure(
                [items[at] for _ in seeds for at in chosen], [seed[column][at] for seed in seeds for at in chosen]
            )
            for backbone, seeds in answers.items()
            for column in ("model", "blind")
        }
        for backbone in answers:
            value = measured[backbone, "model"].estimate()
            row = {
                "pictures": section,
                "measure": name,
                "backbone": backbone,
                "value": value.value,
                "ci95": [value.low, value.high],
            }
            row |= {"blind": measured[backbone, "blind"].estimate().value, "n": len(chosen), "clusters": value.clusters}
            if backbone != first:
                gain, _ = measures.beyond(measured[backbone, "model"], measured[first, "model"])
                row |= {"difference": gain.value, "difference_ci95": [gain.low, gain.high]}
            rows.append({key: _rounded(number) for key, number in row.items()})
    return rows


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a Markdown table."""
    print("| pictures | measure | backbone | value [95 % interval] | blind | difference [95 % interval, paired] |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["ci95"]
        more = (
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["difference"], *row["difference_ci95"])
            if "difference" in row
            else ""
        )
        print(
            f"| {row['pictures']} | {row['measure']} | {row['backbone']} | {row['value']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {row['blind']:.3f} | {more} |"
        )


def main() -> None:
    """Train, ask, print a table and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/mini-image-projector.yaml"))
    parser.add_argument("--backbones", nargs="+", default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scenes", type=int, default=100, help="pictures of unseen objects to ask about")
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains the projector alone")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/backbones"))
    arguments = parser.parse_args()
    trained = {
        b: [composition(arguments.recipe, b, s, arguments) for s in arguments.seeds] for b in arguments.backbones
    }
    items = questions(arguments.scenes)
    rows = compare(items, {backbone: [ask(path, items) for path in paths] for backbone, paths in trained.items()})
    show(rows)
    facts = {
        "recipe": str(arguments.recipe),
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "lora": arguments.lora,
    }
    json.dump({**facts, "rows": rows}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
