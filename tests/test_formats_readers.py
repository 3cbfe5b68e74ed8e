"""Every format gives the same samples; what a record may look like."""

from __future__ import annotations

import base64
import json
import sys

import pytest

import format_files
from format_files import COLOURS, FORMATS, KINDS, NEEDS_PYARROW, picture, pictures, turns, write_lines
from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.readers import READERS, open_set
from sensorium.training.data.formats.sample import Broken, Sample


@pytest.fixture(params=FORMATS)
def made(request, tmp_path):
    """(name of the format, path of the data set)."""
    if request.param in NEEDS_PYARROW:
        pytest.importorskip("pyarrow")
    return request.param, FORMATS[request.param](tmp_path / "set")


def test_every_format_is_recognised_and_gives_the_same_samples(made):
    name, path = made
    reader = open_set(path)
    assert reader.kind == KINDS[name]
    samples = list(reader.samples())
    assert all(isinstance(sample, Sample) for sample in samples), samples
    # folders are read in the order of names
    assert sorted(sample.answers[-1] for sample in samples) == sorted(f"It is {colour}." for colour in COLOURS)
    for sample in samples:
        [question, answer] = sample.messages
        assert (
            (question.role, answer.role) == ("user", "assistant") and question.text and "<image>" not in question.text
        )
        [medium] = sample.media
        colour = answer.text.split()[-1].rstrip(".")
        expected = {"green": (0, 128, 0), "orange": (255, 165, 0)}.get(colour)
        pixels = medium.load().pixels
        assert pixels.shape == (18, 24, 3)
        if expected:
            assert abs(pixels[9, 12].astype(int) - expected).max() < 8
    assert len({sample.id for sample in samples}) == len({sample.where for sample in samples}) == len(samples)


def test_reading_from_anywhere_gives_the_rest(made):
    reader = open_set(made[1])
    for shard in reader.shards():
        whole = [item.where for item in reader.read(shard)]
        for start in range(len(whole) + 2):
            for step in (1, 2, 3):
                assert [item.where for item in reader.read(shard, start, step)] == whole[start::step]


def test_a_recipe_may_name_the_kind(tmp_path):
    path = format_files.llava_json(tmp_path)
    assert open_set(path, "messages").kind == "messages"
    with pytest.raises(UsageError, match="known formats: messages, llava"):
        open_set(path, "coco")


def test_a_media_directory_of_its_own(tmp_path):
    path = format_files.messages_jsonl(tmp_path / "a")
    moved = tmp_path / "elsewhere"
    (tmp_path / "a" / "images").rename(tmp_path / "images")
    moved.symlink_to(tmp_path)  # what the user names may be a link
    [first, *_] = open_set(path, media=moved).samples()
    assert first.media[0].load().width == 24


def one(tmp_path, record):
    """The second sample of a JSONL file."""
    [_, found] = open_set(write_lines(pictures(tmp_path) / "one.jsonl", [{"caption": "x"}, record])).samples()
    return found


def test_openai_parts(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(picture("blue")).decode()
    for image, part in [
        ({"url": url}, "image_url"),
        (url, "image"),
        ("images/blue.png", "image"),
        ({"url": "images/blue.png"}, "image_url"),
        ("images/blue.png", "input_image"),
    ]:
        record = {"messages": turns("blue", image, "image_url" if part == "input_image" else part)}
        record["messages"][0]["content"][0]["type"] = part
        assert tuple(one(tmp_path, record).media[0].load().pixels[0, 0]) == (0, 0, 255)


def test_several_turns_and_pictures_in_order(tmp_path):
    record = {
        "images": ["images/red.png", "images/blue.png", "images/green.png"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Compare <image> with <image>."},
            {"role": "assistant", "content": "One is <image>."},  # an answer's characters stay characters
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
            {"role": "assistant", "content": "Green."},
        ],
    }
    sample = one(tmp_path, record)
    assert [len(m.media) for m in sample.messages] == [0, 2, 0, 1, 0]
    assert [m.path.stem for m in sample.media] == ["red", "blue", "green"]
    assert sample.messages[1].text == "Compare with ." and sample.messages[2].text == "One is <image>."


def test_text_alone_keeps_the_mark_as_characters(tmp_path):
    record = {"conversations": [{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "A tag."}]}
    sample = one(tmp_path, record)
    assert not sample.media and sample.messages[0].text == "What is <image>?"


def test_a_picture_without_a_place_stands_first(tmp_path):
    sample = one(tmp_path, {"image": "images/red.png", "question": "Red?", "answer": "yes"})
    assert sample.messages[0].media and sample.messages[0].text == "Red?"


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"question": "Q?", "answers": ["a", "b", "b"]}, "Q?", "b"),
        ({"question": "Q?", "answers": [{"answer": "a"}, {"answer": "a"}, {"answer": "b"}]}, "Q?", "a"),
        ({"texts": [{"user": "Q?", "assistant": "A", "source": "s"}]}, "Q?", "A"),
        ({"captions": ["A dog.", "A cat."]}, "Describe this picture.", "A dog."),
        ({"text": "A dog."}, "Describe this picture.", "A dog."),
    ],
)
def test_other_columns(tmp_path, record, question, answer):
    sample = one(tmp_path, record)
    assert (sample.messages[0].text, sample.messages[1].text) == (question, answer)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([1, 2], "the record is of type list"),
        ({}, "no messages, conversations"),
        ({"messages": []}, "at least one turn"),
        ({"messages": "hello"}, "must be a list"),
        ({"messages": ["hello"]}, "a turn is of type str"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "'wizard' is unknown"),
        ({"messages": [{"role": "user", "content": 7}]}, "the user turn is of type int"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}]}, "'video' are not taken"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "more places"),
        ({"images": ["images/red.png"] * 2, "messages": [{"role": "user", "content": "<image>"}]}, "places for 1"),
        ({"images": [7], "caption": "x"}, "given as a value of type int"),
        ({"question": "Q?"}, "no `answer`"),
        ({"question": "Q?", "answer": 3}, "the assistant turn is of type int"),
        ({"image": "http://127.0.0.1/a.png", "caption": "x"}, "remote address, which is never fetched"),
        ({"image": "data:text/plain,hello", "caption": "x"}, "data: URL in base64"),
    ],
)
def test_a_record_that_is_no_sample(tmp_path, record, says):
    found = one(tmp_path, record)
    assert isinstance(found, Broken) and says in found.reason and found.where.endswith("one.jsonl, line 2")


def test_lines_are_counted_with_the_empty_ones(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"caption": "a"}\n\n\n{"caption": "b"}\nnonsense\n{"caption": "c"}')
    where = [(item.where.rpartition(" ")[2], type(item)) for item in open_set(path).samples()]
    assert where == [("1", Sample), ("4", Sample), ("5", Broken), ("6", Sample)]


def test_a_long_array_is_read_in_pieces(tmp_path, monkeypatch):
    from sensorium.training.data.formats import lines

    monkeypatch.setattr(lines, "_PIECE", 64)
    rows = [{"caption": "ü" * (i % 90), "n": [i, {"x": "]}"}]} for i in range(200)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows, indent=3, ensure_ascii=False), encoding="utf-8")
    assert [record.value for record in lines.json_items(path)] == rows
    text = path.read_text(encoding="utf-8").splitlines()
    for i, record in enumerate(lines.json_items(path, 150), start=150):
        line = int(record.where.rpartition(" ")[2])
        assert text[line - 1].strip() == "{" and '"n": [' in text[line + 1] and str(i) in text[line + 2]


def test_pyarrow_absent_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + bytes(100))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SensoriumError, match=r'pip install -e "\.\[data\]"'):
        list(open_set(path).samples())


def test_labels_of_a_saved_data_set_are_names(tmp_path):
    pa = pytest.importorskip("pyarrow")
    features = {"label": {"names": ["cat", "sea_lion"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"label": [1], "image": [{"bytes": picture(), "path": None}]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    split = tmp_path / "train"
    split.mkdir()
    with pa.OSFile(str(split / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    [sample] = open_set(tmp_path).samples()
    assert sample.answers == ("sea lion",) and sample.media[0].load().width == 24


def test_what_datasets_itself_saves(tmp_path):
    """Against the library, where it is installed."""
    datasets = pytest.importorskip("datasets")
    pictures(tmp_path)
    rows = {
        "image": [str(tmp_path / "images" / f"{c}.png") for c in COLOURS],
        "caption": [f"It is {c}." for c in COLOURS],
    }
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": data.select(range(5)), "test": data.select(range(5, 8))}).save_to_disk(
        tmp_path / "saved", num_shards={"train": 2, "test": 1}
    )
    samples = list(open_set(tmp_path / "saved").samples())
    assert [s.answers[0] for s in samples] == [f"It is {c}." for c in COLOURS]
    assert all(s.media[0].load().width == 24 for s in samples)


def test_the_registry_names_classes_of_their_kind():
    from importlib import import_module

    for kind, (module, name) in READERS.items():
        assert getattr(import_module(f"sensorium.training.data.formats.{module}"), name).kind == kind
