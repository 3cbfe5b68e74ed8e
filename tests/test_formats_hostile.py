"""Data sets that want to read other files, to fill memory or to break the reader: each gives sentences."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc

import pytest

import format_files
from bad_files import bad_images
from format_files import picture, tar, turns, write_lines
from sensorium.errors import SensoriumError
from sensorium.training.data.formats import lines
from sensorium.training.data.formats.readers import open_set
from sensorium.training.data.formats.sample import Broken, MediaRef, Sample


@pytest.fixture
def secret(tmp_path):
    """A picture outside of the data set, which stands in tmp_path / "set"."""
    (tmp_path / "set").mkdir()
    path = tmp_path / "secret.png"
    path.write_bytes(picture())
    return path


def escapes(tmp_path):
    return [
        "../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png", "~/secret.png", "C:\\secret.png",
        "..\\secret.png", "file:///etc/passwd", "https://example.invalid/a.png", "link.png", "links/secret.png",
        "images/\0.png", "", "loop", "x" * 5000, "/dev/zero", "pipe",
    ]  # fmt: skip


def lay_traps(tmp_path):
    root = tmp_path / "set"
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "links").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")


def opens(sample):
    """Whether any picture of a sample can be opened."""
    try:
        return isinstance(sample, Sample) and all(medium.load() for medium in sample.media) and bool(sample.media)
    except SensoriumError:
        return False


@pytest.mark.parametrize("column", ["image", "messages", "file_name"])
def test_no_name_leads_out_of_the_directory(secret, tmp_path, column):
    lay_traps(tmp_path)
    rows = []
    for name in escapes(tmp_path):
        record = {"messages": turns("red", name)} if column == "messages" else {column: name, "text": "x"}
        rows.append(record)
    file = "metadata.jsonl" if column == "file_name" else "x.jsonl"
    write_lines(tmp_path / "set" / file, rows)
    found = list(open_set(tmp_path / "set").samples())
    assert len(found) == len(rows)
    assert not any(opens(item) for item in found)


def test_llava_hf_and_captions_cannot_escape_either(secret, tmp_path):
    root = tmp_path / "set"
    (root / "captions.txt").write_text("../secret.png\ta\n")
    [found] = open_set(root).samples()
    assert isinstance(found, Broken) and "leads out" in found.reason
    for state in ({"_data_files": [{"filename": "../x.arrow"}]}, {"_data_files": 7}, {}):
        (root / "state.json").write_text(json.dumps(state))
        with pytest.raises(SensoriumError, match=r"leads out|lists no data files"):
            list(open_set(root).samples())
    (root / "state.json").unlink()
    (root / "dataset_dict.json").write_text('{"splits": ["../.."]}')
    with pytest.raises(SensoriumError, match="leads out"):
        list(open_set(root).samples())


def test_files_of_a_folder_that_are_links(secret, tmp_path):
    root = tmp_path / "set"
    (root / "cat").mkdir()
    (root / "cat" / "a.png").symlink_to(secret)
    (root / "cat" / "b.png").write_bytes(picture())
    (root / "cat" / "b.txt").symlink_to("/etc/passwd")
    found = list(open_set(root).samples())
    assert [type(item) for item in found] == [Broken, Broken]
    write_lines(tmp_path / "out.jsonl", [{"caption": "secret"}])
    (root / "train.jsonl").symlink_to(tmp_path / "out.jsonl")
    with pytest.raises(SensoriumError, match="link that leads out"):
        list(open_set(root).samples())


def test_tar_members_that_are_no_files(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in [
            ("a.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("b.jpg", tarfile.LNKTYPE, "../secret.png"),
            ("c.jpg", tarfile.FIFOTYPE, ""),
            ("d.jpg", tarfile.CHRTYPE, ""),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
            archive.addfile(_file(name.replace("jpg", "txt"), 1), io.BytesIO(b"x"))
        archive.addfile(_file("../../e.jpg", len(picture())), io.BytesIO(picture()))  # a name is only a key
        archive.addfile(_file("../../e.txt", 1), io.BytesIO(b"x"))
    found = list(open_set(path).samples())
    assert [len(sample.media) for sample in found] == [0, 0, 0, 0, 1]
    assert found[-1].media[0].path == path and found[-1].media[0].load().width == 24


def _file(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    return member


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024, 1500, 2600, 3500, 4000])
def test_a_truncated_tar_gives_what_is_whole_and_then_a_sentence(tmp_path, keep):
    whole = tar(tmp_path / "x.tar", [(f"{i}.{e}", b"x" * 600) for i in range(2) for e in ("jpg", "txt")])
    data = whole.read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(data[:keep])
    seen = []
    with pytest.raises(SensoriumError, match=r"cut\.tar .*; get a whole copy"):
        for item in open_set(cut, "webdataset").samples():
            seen.append(item)
    assert len(seen) <= 1 and all(isinstance(item, Sample) for item in seen)


def test_a_tar_header_that_lies_about_its_size(tmp_path):
    path = tar(tmp_path / "x.tar", [("a.txt", b"x" * 10)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path, "w") as archive:
        archive.addfile(_file("a.txt", 10), io.BytesIO(b"x" * 10))
    for size in (b"77777777777\0", b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"garbage!!!!\0"):
        data[124:136] = size
        header = bytes(data[:148]) + b" " * 8 + bytes(data[156:512])
        data[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(data)
        with pytest.raises(SensoriumError, match=r"x\.tar"):
            list(open_set(path, "webdataset").samples())


def test_a_compressed_tar_is_named(tmp_path):
    import gzip

    path = tmp_path / "x.tar"
    path.write_bytes(gzip.compress(tar(tmp_path / "y.tar", [("a.txt", b"x")]).read_bytes()))
    with pytest.raises(SensoriumError, match="unpacked if it is compressed"):
        list(open_set(path, "webdataset").samples())


@pytest.mark.parametrize("make", [format_files.messages_parquet, format_files.hugging_face])
def test_truncated_and_damaged_tables(tmp_path, make):
    pytest.importorskip("pyarrow")
    made = make(tmp_path / "set")
    file = made if made.is_file() else made / "data-00000-of-00002.arrow"
    data = file.read_bytes()
    cuts = [data[: len(data) * i // 10] for i in range(10)]
    flipped = [data[: i * 37] + bytes([data[i * 37] ^ 0x55]) + data[i * 37 + 1 :] for i in range(1, len(data) // 37, 7)]
    for damaged in [*cuts, *flipped, b"PAR1" + b"\xff" * 40 + b"PAR1"]:
        file.write_bytes(damaged)
        try:
            for item in open_set(made, "messages" if made.is_file() else "hf").samples():
                opens(item)
        except SensoriumError as error:
            assert len(str(error).splitlines()) == 1  # a flip may go unnoticed


def test_an_endless_line_takes_no_memory_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD", 1 << 16)
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b'{"caption": "a"}\n{"caption": "')
        for _ in range(200):
            file.write(b"x" * (1 << 18))
        file.write(b'"}\n{"caption": "b"}\n')
    tracemalloc.start()
    found = list(open_set(path).samples())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [type(item) for item in found] == [Sample, Broken, Sample] and found[2].where.endswith("line 3")
    assert peak < 8 << 20


def test_an_endless_item_of_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD", 1 << 20)
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"caption": "a"}, {"caption": "' + b"x" * (40 << 20))
    tracemalloc.start()
    reader = iter(open_set(path).samples())
    assert next(reader).answers == ("a",)
    with pytest.raises(SensoriumError, match="line 1"):
        next(reader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize(
    "text",
    ["[", "[1", '[{"a": 1}', '[{"a": 1},', '[{"a": 1} {"b": 2}]', "[" * 100000, '[{"a":' * 50000, "[}", '["\\ud'],
)
def test_broken_arrays(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SensoriumError, match=r"x\.json, line 1"):
        list(open_set(path).samples())


@pytest.mark.parametrize(
    "line", [b"{" * 100000, b"[" * 100000, b"\xff\xfe{}", b"{'a': 1}", b"nan", b"9" * 5000, b'{"a":']
)
def test_broken_lines(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"caption": "a"}\n' + line + b'\n{"caption": "b"}\n')
    assert [type(item) for item in open_set(path).samples()] == [Sample, Broken, Sample]


def test_bytes_that_are_no_image(tmp_path):
    bad = list(bad_images())[::4]
    path = tar(tmp_path / "x.tar", [m for i, b in enumerate(bad) for m in ((f"{i}.jpg", b.data), (f"{i}.txt", b"x"))])
    samples = list(open_set(path).samples())
    assert len(samples) == len(bad)
    for sample, one in zip(samples, bad):
        with pytest.raises(SensoriumError) as caught:
            sample.media[0].load()
        assert len(str(caught.value).splitlines()) == 1, one.name


def test_media_hold_limits_before_they_are_read(tmp_path):
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    for medium in (MediaRef("big", path=path), MediaRef("big", path=path, span=(0, 1 << 39))):
        with pytest.raises(SensoriumError, match="more than the 64 MiB"):
            medium.load()
    with pytest.raises(SensoriumError, match="cut off"):
        MediaRef("x", path=write_lines(tmp_path / "x", [1]), span=(0, 100)).load()


def test_what_is_no_data_set(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x95" + bytes(20))
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.jsonl").write_bytes(b"")
    for path, says in [
        (tmp_path / "a.pkl", "no data set that is known"),
        (tmp_path / "empty", "holds no picture"),
        (tmp_path / "nothing.jsonl", "no data set that is known"),
        (tmp_path / "none", "does not exist"),
        ("x" * 5000, "is no path"),
        ("a\0b", "is no path"),
    ]:
        with pytest.raises(SensoriumError, match=says):
            list(open_set(path).samples())
