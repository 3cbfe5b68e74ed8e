"""The recipe's `install`: a finished composition takes another's place as a whole, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.install import check_target, install

OLD = {"composition.yaml": b"old", "manifest.json": b"old", "image.onnx": b"old", "lora.safetensors": b"old"}
NEW = {"composition.yaml": b"new", "manifest.json": b"new", "image.onnx": b"new", "image.safetensors": b"new"}


def write(directory, files):
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def read(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def trained(tmp_path):
    return write(tmp_path / "out" / "composition", NEW | {".image.onnx.tmp": b"", "notes.txt": b""})


@pytest.fixture
def there(tmp_path):
    return write(tmp_path / "there" / "mini", OLD)


def test_a_composition_is_installed_alone_and_replaces_another_as_a_whole(trained, there, tmp_path):
    assert read(install(trained, str(there))) == NEW  # also without the LoRA that the old one had
    assert read(install(trained, str(tmp_path / "a" / "b"))) == NEW
    write(trained / "backbone", {"model.safetensors": b"new"})  # of a run that trains the language model, too
    assert read(install(trained, str(there)) / "backbone") == {"model.safetensors": b"new"}
    (tmp_path / "link").symlink_to(there)
    install(trained, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and [path.name for path in there.parent.iterdir()] == ["mini"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_fails_half_way_leaves_the_old_one(trained, there, monkeypatch, error):
    real, copied = shutil.copy2, []

    def copy(source, target):
        copied.append(source)
        if len(copied) == 3:
            raise error
        return real(source, target)

    monkeypatch.setattr("sensorium.training.install.shutil.copy2", copy)
    with pytest.raises((SensoriumError, KeyboardInterrupt)):
        install(trained, str(there))
    assert read(there) == OLD and [path.name for path in there.parent.iterdir()] == ["mini"]


def test_a_move_that_fails_brings_the_old_one_back(trained, there, monkeypatch):
    real, moved = Path.rename, []

    def rename(self, target):
        moved.append(self)
        if len(moved) == 3:  # onto the old one, the old one aside, the new one to its place
            raise PermissionError(13, "Permission denied", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SensoriumError, match="cannot be written"):
        install(trained, str(there))
    assert read(there) == OLD and len(moved) == 4


@pytest.mark.parametrize("spoil", ["README.md", "weights.gguf", "sub/"])
def test_what_is_no_composition_alone_is_never_replaced(there, tmp_path, spoil):
    (there / spoil).mkdir() if spoil.endswith("/") else (there / spoil).touch()
    with pytest.raises(UsageError, match=f"holds more than one.*{spoil.strip('/')}"):
        check_target(str(there), tmp_path / "out")


def test_places_that_cannot_be_written_are_refused_before_the_run(there, tmp_path):
    (there / "composition.yaml").unlink()
    with pytest.raises(UsageError, match="no composition"):
        check_target(str(there), tmp_path / "out")
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(SensoriumError, match="install"):
            check_target(str(tmp_path / place), tmp_path / "out")
    for place in ("out", "out/composition", "."):
        with pytest.raises(UsageError, match="neither inside the other"):
            check_target(str(tmp_path / place), tmp_path / "out")
