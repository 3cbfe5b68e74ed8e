"""The recipe's ``install``: a finished composition copied, as a whole, to where it is used from."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from sensorium import hub
from sensorium.arguments import expanded
from sensorium.composition import FILE, MANIFEST
from sensorium.errors import SensoriumError, UsageError

TRAINED = (".onnx", ".safetensors")
BACKBONE = "backbone"  # a directory, of a run that trains the language model


def check_target(target: str | None, output: Path) -> None:
    """Refuse, before anything is fetched, a place that a composition could not or should not be put in.

    What stands there is replaced as a whole, so it must be a composition and nothing besides.

    Raises:
        UsageError: `target` is the run's own output or above it, or holds something else.
        SensoriumError: it cannot be written.
    """
    if target is None:
        return
    place, run = expanded(target).resolve(), output.resolve()
    if run.is_relative_to(place) or place.is_relative_to(run):
        raise UsageError(f"install is {target} and the output is {output}; give two places, neither inside the other.")
    names = _names(place)
    strange = sorted(name for name in names if not _belongs(name))
    if names and (strange or FILE not in names):
        found = strange[0] if strange else f"no {FILE}"
        raise UsageError(
            f"install would replace {target}, which is no composition or holds more than one ({found[:100]}); "
            "name a composition or a new directory."
        )
    above = next(parent for parent in place.parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(
            prefix=".sensorium-", dir=above
        ).cleanup()  # root may write where nothing can be made
    except OSError as error:
        raise SensoriumError(f"install cannot write into {above} ({error.strerror}); choose another place.") from None


def install(trained: Path, target: str) -> Path:
    """Copy ``composition.yaml``, the manifest and the trained files of `trained` to the directory `target`.

    The copy is made beside `target` and takes its place by renaming, so nobody ever finds half of one composition and
    half of another there. Returns the directory.

    Raises:
        SensoriumError: it cannot be written; what stood there is as it was.
    """
    place = expanded(target).resolve()  # behind a link, whose place a directory could not take
    check_target(target, trained.parent)
    with hub.atomic_dir(place) as directory:
        for path in trained.iterdir():
            if path.is_dir() and path.name == BACKBONE:
                shutil.copytree(path, directory / BACKBONE)
            elif path.is_file() and _belongs(path.name):
                shutil.copy2(path, directory / path.name)
    return place


def _belongs(name: str) -> bool:
    return name in (FILE, MANIFEST, BACKBONE) or (Path(name).suffix in TRAINED and not name.startswith("."))


def _names(place: Path) -> list[str]:
    try:
        return [path.name for path in place.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SensoriumError(f"install is {place}, which is no directory to write ({error.strerror}).") from None
