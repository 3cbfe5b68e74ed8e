"""Archives are data from strangers: what is taken out, what is refused."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_server import make_deb, make_tar, make_zip, noise
from sensorium.errors import SensoriumError
from sensorium.hub.archives import ArchiveLimits, extract_many, extract_one, safe_name

FILES = {"pkg/model.bin": noise(300_000), "pkg/readme.txt": b"hello", "pkg/other/model.txt": b"x"}
MAKERS = {
    "zip": make_zip,
    "tgz": make_tar,
    "txz": lambda files: make_tar(files, mode="xz"),
    "tbz": lambda files: make_tar(files, mode="bz2"),
    "tar": lambda files: make_tar(files, mode=""),
    "deb.xz": make_deb,
    "deb.gz": lambda files: make_deb(files, "gz"),
    "deb": lambda files: make_deb(files, ""),
}


def written(tmp_path, data: bytes):
    path = tmp_path / "archive"
    path.write_bytes(data)
    return path


def all_files(directory) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("kind", MAKERS)
def test_one_member_comes_out_whole_and_nothing_else(tmp_path, kind):
    archive = written(tmp_path, MAKERS[kind](FILES))
    found = extract_one(archive, "pkg/model.bin", tmp_path / "out", label="it")
    assert found.path.read_bytes() == FILES["pkg/model.bin"]
    assert all_files(tmp_path / "out") == {"pkg/model.bin"}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_glob_takes_many(tmp_path, kind):
    archive = written(tmp_path, MAKERS[kind](FILES))
    found = extract_many(archive, ["*.txt"], tmp_path / "out", label="it")
    assert {file.name for file in found} == all_files(tmp_path / "out") == {"pkg/readme.txt", "pkg/other/model.txt"}


def test_names_and_globs_together(tmp_path):
    archive = written(tmp_path, make_tar({**FILES, "pkg/a[1].txt": b"y"}))
    extract_many(archive, ["pkg/model.bin", "*/readme.*"], tmp_path / "out", label="it")
    assert all_files(tmp_path / "out") == {"pkg/model.bin", "pkg/readme.txt"}


def test_zstd_needs_dpkg(tmp_path, monkeypatch):
    archive = written(tmp_path, make_deb({"a": b"b"}, "").replace(b"data.tar        ", b"data.tar.zst    "))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SensoriumError, match="dpkg-deb"):
        extract_one(archive, "a", tmp_path / "out", label="it")


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("pkg/none.bin", "holds no file"),
        ("*.txt", "several files"),
        ("*.jpg", "holds no file"),
        ("pkg", "holds no file"),
    ],
)
def test_a_member_that_is_not_one_file(tmp_path, member, words):
    with pytest.raises(SensoriumError, match=words):
        extract_one(written(tmp_path, make_zip(FILES)), member, tmp_path / "out", label="it")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "..",
        "C:/evil",
        "C:evil",
        "a\\..\\..\\evil",
        "\\\\server\\evil",
        "a\0b",
        ".",
        "",
        "x" * 300,
    ],
)
def test_names_that_leave_the_directory_have_no_safe_form(name):
    assert safe_name(name) is None


@pytest.mark.parametrize(("name", "clean"), [("./usr//share/a", "usr/share/a"), ("a/./b", "a/b"), ("a..b/c", "a..b/c")])
def test_harmless_names_are_cleaned(name, clean):
    assert safe_name(name) == clean


@pytest.mark.parametrize("make", [make_zip, make_tar, make_deb])
def test_traversal_is_never_written(tmp_path, make):
    archive = written(
        tmp_path, make({"../evil.txt": b"1", "/abs/evil.txt": b"2", "a/../../evil.txt": b"3", "good.txt": b"4"})
    )
    extract_many(archive, ["*"], tmp_path / "deep" / "out", label="it")
    assert all_files(tmp_path) - {"archive"} <= {"deep/out/good.txt", "deep/out/abs/evil.txt"}
    with pytest.raises(SensoriumError):
        extract_one(archive, "../evil.txt", tmp_path / "deep" / "out2", label="it")


def test_links_become_copies_of_files_of_the_archive_only(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    links = {
        "a/link.png": "../b/real.png",
        "a/chain.png": "link.png",
        "a/abs.png": str(secret),
        "a/out.png": "../../../secret",
        "a/loop.png": "loop.png",
        "a/dangling.png": "none.png",
        "dir": str(tmp_path),
    }
    archive = written(tmp_path, make_tar({"b/real.png": b"picture"}, links))
    extract_many(archive, ["*.png", "dir*"], tmp_path / "out", label="it")
    assert all_files(tmp_path / "out") == {"b/real.png", "a/link.png", "a/chain.png"}
    assert (tmp_path / "out/a/chain.png").read_bytes() == b"picture"
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_link_is_no_member(tmp_path):
    archive = written(tmp_path, make_tar({"b": b"x"}, {"a": "/etc/passwd"}))
    with pytest.raises(SensoriumError, match="link"):
        extract_one(archive, "a", tmp_path / "out", label="it")


def test_writing_through_a_link_of_the_archive_is_impossible(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        archive.addfile(link)
        info = tarfile.TarInfo("d/evil.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    (tmp_path / "elsewhere").mkdir()
    extract_many(written(tmp_path, out.getvalue()), ["*"], tmp_path / "out", label="it")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_devices_and_pipes_are_left_out(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (("fifo", tarfile.FIFOTYPE), ("char", tarfile.CHRTYPE), ("block", tarfile.BLKTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        info = tarfile.TarInfo("file")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    extract_many(written(tmp_path, out.getvalue()), ["*"], tmp_path / "out", label="it")
    assert all_files(tmp_path / "out") == {"file"}


def test_a_zip_symlink_is_no_file(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SensoriumError, match="link"):
        extract_one(written(tmp_path, out.getvalue()), "link", tmp_path / "out", label="it")


@pytest.mark.parametrize(
    "limits",
    [
        ArchiveLimits(max_file_bytes=1000),
        ArchiveLimits(max_total_bytes=1000),
        ArchiveLimits(max_files=1),
        ArchiveLimits(max_members=2),
    ],
)
def test_bombs_stop_at_the_limit(tmp_path, limits):
    archive = written(tmp_path, make_zip({f"{i}.bin": b"\0" * 600 + bytes(600) * (i == 0) for i in range(4)}))
    with pytest.raises(SensoriumError, match="more than"):
        extract_many(archive, ["*"], tmp_path / "out", label="it", limits=limits)


def test_a_header_that_lies_about_the_size(tmp_path):
    data = bytearray(make_zip({"a.bin": b"\0" * 100_000}))
    central = data.index(b"PK\1\2")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    with pytest.raises(SensoriumError):
        extract_one(written(tmp_path, bytes(data)), "a.bin", tmp_path / "out", label="it")
    assert all_files(tmp_path) == {"archive"}


def test_an_encrypted_member(tmp_path):
    data = bytearray(make_zip({"a": b"x" * 50}))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + offset] |= 1
    with pytest.raises(SensoriumError, match="damaged or unusual"):
        extract_one(written(tmp_path, bytes(data)), "a", tmp_path / "out", label="it")


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"hello", b"!<arch>\n", b"!<arch>\nshort", b"\x1f\x8b", b"\xfd7zXZ", b"BZh9", b"\0" * 600]
)
def test_what_is_no_archive(tmp_path, data):
    with pytest.raises(SensoriumError):
        extract_one(written(tmp_path, data), "a", tmp_path / "out", label="it")


SMALL = {kind: make({"a/b.bin": noise(2000), "c.txt": b"text" * 50}) for kind, make in MAKERS.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_damaged_archives_give_one_sentence_and_stay_inside(tmp_path_factory, kind, data):
    directory = tmp_path_factory.mktemp("damaged")
    body = bytearray(SMALL[kind])
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    archive = written(directory, bytes(body))
    for take in (
        lambda: extract_many(archive, ["*"], directory / "out", label="it"),
        lambda: extract_one(archive, "c.txt", directory / "out", label="it"),
    ):
        try:
            take()
        except SensoriumError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
    assert all_files(directory) - {"archive"} == {f"out/{name}" for name in all_files(directory / "out")}


@pytest.mark.skipif(not (shutil.which("dpkg-deb") and shutil.which("zstd")), reason="needs dpkg-deb and zstd")
def test_zstd_through_dpkg(tmp_path):
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: me <me@example.org>\nDescription: x\n"
    )
    (package / "model.bin").write_bytes(FILES["pkg/model.bin"])
    subprocess.run(
        ["dpkg-deb", "-Zzstd", "--build", str(package), str(tmp_path / "a.deb")], check=True, capture_output=True
    )
    found = extract_one(tmp_path / "a.deb", "*.bin", tmp_path / "out", label="it")
    assert found.path.read_bytes() == FILES["pkg/model.bin"]
