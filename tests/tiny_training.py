"""Small training material, drawn by the test itself: named cut-outs, photographs, a catalogue and a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from sensorium.training.data import vocabulary

# (name, colour word, fill): nouns of the lexicon, some of which are kinds or look-alikes of others
CUTOUTS = [
    ("apple", "red", (200, 30, 30)),
    ("banana", "yellow", (230, 210, 40)),
    ("strawberry", "red", (210, 20, 50)),
    ("dog", "", (120, 80, 40)),
    ("beagle", "", (160, 120, 90)),
    ("cat", "black", (20, 20, 20)),
    ("car", "blue", (30, 40, 200)),
    ("sports car", "red", (220, 0, 0)),
    ("chair", "", (140, 100, 60)),
    ("tree", "green", (20, 130, 30)),
    ("guitar", "", (150, 90, 30)),
    ("scissors", "", (90, 90, 100)),
    ("bread", "", (200, 170, 110)),
    ("woman", "", (210, 160, 140)),
    ("umbrella", "blue", (40, 60, 190)),
]
PHOTOS = [("tree", "green"), ("dog", ""), ("beach", "")]


def write_catalogue(directory: Path, *, photos: bool = True, names: int = len(CUTOUTS)) -> Path:
    """Pictures of plain shapes and ``catalogue.jsonl``; paths in it are relative."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (name, colour, fill) in enumerate(CUTOUTS[:names]):
        image = Image.new("RGBA", (120, 90 + 5 * i), (0, 0, 0, 0))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if i % 2 else draw.rectangle)((4, 4, 115, 80 + 5 * i), fill=(*fill, 255))
        image.save(directory / f"{i}.png")
        rows.append(row(f"{i}.png", "cutout", name, colour, "photo"))
        if i % 4 == 0:  # a second picture of the noun, in another style
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(directory / f"{i}b.png")
            rows.append(row(f"{i}b.png", "clipart", name, colour, "clipart"))
    for i, (name, colour) in enumerate(PHOTOS if photos else []):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((400, 320)).save(directory / f"photo{i}.jpg")
        rows.append(row(f"photo{i}.jpg", "photo", name, colour, "photo"))
        rows.append(row(f"photo{i}.jpg", "background", name, "", "photo"))
    path = directory / "catalogue.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def row(path: str, kind: str, name: str, colour: str, style: str) -> dict[str, Any]:
    """One line of a catalogue."""
    return {
        "path": path,
        "kind": kind,
        "name": name,
        "article": vocabulary.article(name),
        "also": vocabulary.also(name),
        "contains": [],
        "never": sorted(vocabulary.not_deniable(name)),
        "attributes": {"color": colour} if colour else {},
        "source": "test",
        "style": style,
        "split": "train",
    }


def recipe(composition: Path, catalogue: Path, output: Path, /, **changes: Any) -> dict[str, Any]:
    """A recipe that trains the tiny composition in seconds; ``changes`` are dotted keys ("train__steps")."""
    plan: dict[str, Any] = {
        "name": "tiny",
        "composition": str(composition),
        "output": str(output),
        "projector": {"kind": "mlp", "options": {"pool": 2, "hidden": 32}},
        "lora": {"rank": 2, "alpha": 4},
        "data": {
            "catalogue": str(catalogue),
            "scenes": 24,
            "seed": 1,
            "mix": {"single": 0.5, "several": 0.3, "count": 0.2},
            "questions": {"yesno": 0.5, "describe": 0.2, "what": 0.1, "count": 0.1, "side": 0.1},
        },
        "train": {
            "steps": 6,
            "rows": 4,
            "row_tokens": 256,
            "learning_rate": {"projector": 0.003, "lora": 0.003},
            "warmup": 2,
            "precision": "fp32",
            "processes": 1,
            "compile": False,
            "checkpoint_every": 3,
            "log_every": 1,
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        at = plan
        for name in parents:
            at = at[name]
        at[last] = value
    return plan


def write_recipe(path: Path, plan: dict[str, Any]) -> Path:
    """The recipe as a YAML file."""
    path.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return path
