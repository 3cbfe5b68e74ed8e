"""The feature cache: pictures a second cold, rows a second warm, bytes a picture, processes against Ray.

    python benchmarks/features.py [--pictures 500] [--workers 2] [--no-ray] [--json results/features.json]

Pictures are JPEG files of random blocks, 512 x 384, the encoder is that of `mini`. Warm rates are of batches of 16 in
random order, as float32, from a cache that the operating system holds in memory. Take a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium import hub
from sensorium.composition import Composition
from sensorium.training.data.formats.sample import MediaRef
from sensorium.training.features import CachedFeatures, EncoderPart, FeatureCache, digest


def pictures(directory: Path, count: int) -> list[MediaRef]:
    """JPEG files of random blocks."""
    random, media = np.random.default_rng(0), []
    for i in range(count):
        path = directory / f"{i}.jpg"
        pixels = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        pixels.resize((512, 384), Image.Resampling.BICUBIC).save(path, quality=90)
        media.append(MediaRef(path.name, path))
    return media


def measure(media: list[MediaRef], part: EncoderPart, root: Path, engine: str, dtype: str, workers: int) -> dict:
    """Fill an empty cache, then read it."""
    with FeatureCache.of(part, dtype, root=root) as cache:
        began = time.perf_counter()
        assert cache.fill(media, part, workers, engine=engine).encoded == len(media)
        cold = len(media) / (time.perf_counter() - began)
        size = sum(path.stat().st_size for path in cache.directory.glob("*.safetensors"))
        keys = [digest(medium) for medium in media]
        order = np.random.default_rng(1).integers(0, len(media), (200, 16))
        list(cache.stream([[keys[i] for i in row] for row in order[:20]]))  # check sums, page cache
        began = time.perf_counter()
        for batch in cache.stream([[keys[i] for i in row] for row in order]):
            float(batch[0, 0, 0])
        read = order.size / (time.perf_counter() - began)
        features = CachedFeatures(cache, part)
        features(media)
        began = time.perf_counter()
        for row in order:
            features([media[i] for i in row])
        trained = order.size / (time.perf_counter() - began)
    return {
        "engine": engine, "dtype": dtype, "workers": workers, "cold_per_s": round(cold, 1),
        "read_per_s": round(read), "training_per_s": round(trained), "bytes": round(size / len(media)),
    }  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    mini = Composition.find("mini")
    declared = mini.spec.encoders["image"]
    part = EncoderPart(declared.kind, hub.fetch(mini.part("encoders", "image")), declared.options)
    rays = [] if given.no_ray or importlib.util.find_spec("ray") is None else [("ray", "fp16", given.workers)]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        media = pictures(Path(directory), given.pictures)
        cases = [("local", "fp16", 1), ("local", "fp16", given.workers), ("local", "int8", given.workers), *rays]
        for number, (engine, dtype, workers) in enumerate(cases):
            rows.append(measure(media, part, Path(directory) / str(number), engine, dtype, workers))
    print(
        "| engine | workers | format | cold, pictures/s | read, rows/s | training's reader, rows/s | bytes a picture |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            "| {engine} | {workers} | {dtype} | {cold_per_s} | {read_per_s} | {training_per_s} | {bytes} |".format(
                **row
            )
        )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
