"""The same eight samples in every format that `training/data/formats` reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]
QUESTION = "What colour?"


def picture(colour: str = "red", kind: str = "PNG", size: tuple[int, int] = (24, 18)) -> bytes:
    """An encoded picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


def pictures(directory: Path) -> Path:
    """`images/COLOUR.png` below a directory, which is returned."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        (directory / "images" / f"{colour}.png").write_bytes(picture(colour))
    return directory


def turns(colour: str, image: object, part: str = "image") -> list[dict]:
    """An OpenAI-style conversation about a picture."""
    held = {"type": part, part: image}
    return [
        {"role": "user", "content": [held, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": f"It is {colour}."},
    ]


def write_lines(path: Path, rows: list) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages_jsonl(directory: Path) -> Path:
    """Messages that name files."""
    rows = [{"id": c, "messages": turns(c, f"images/{c}.png"), "licence": "CC0-1.0"} for c in COLOURS]
    return write_lines(pictures(directory) / "train.jsonl", rows)


def messages_parquet(directory: Path) -> Path:
    """Messages beside a column of pictures, in row groups of three."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": c,
            "messages": [
                {"role": "user", "content": f"<image>{QUESTION}"},
                {"role": "assistant", "content": f"It is {c}."},
            ],
            "images": [{"bytes": picture(c), "path": None}],
        }
        for c in COLOURS
    ]
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), directory / "train.parquet", row_group_size=3)
    return directory / "train.parquet"


def llava_json(directory: Path, *, lines: bool = False) -> Path:
    """LLaVA's one long array, or the same as lines."""
    rows = [
        {
            "id": c,
            "image": f"images/{c}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": f"It is {c}."},
            ],
        }
        for c in COLOURS
    ]
    pictures(directory)
    if lines:
        return write_lines(directory / "llava.jsonl", rows)
    (directory / "llava.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return directory / "llava.json"


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A plain tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def webdataset(directory: Path) -> Path:
    """Two shards; the answers are captions in .txt, or messages in .json."""
    for shard in (0, 1):
        members = []
        for i, colour in list(enumerate(COLOURS))[shard * 4 : shard * 4 + 4]:
            members.append((f"train/{i:04}.jpg", picture(colour, "JPEG")))
            if i % 2:
                said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": f"It is {colour}."}]
                members.append((f"train/{i:04}.json", json.dumps({"messages": said}).encode()))
            else:
                members.append((f"train/{i:04}.txt", f"It is {colour}.\n".encode()))
        tar(directory / f"shard-{shard}.tar", members)
    return directory


def class_folders(directory: Path) -> Path:
    """COLOUR/0.png."""
    for colour in COLOURS:
        (directory / f"It_is {colour}.").mkdir(parents=True, exist_ok=True)
        (directory / f"It_is {colour}." / "0.png").write_bytes(picture(colour))
    return directory


def metadata_folder(directory: Path) -> Path:
    """metadata.jsonl beside the pictures."""
    write_lines(
        pictures(directory) / "metadata.jsonl",
        [{"file_name": f"images/{c}.png", "text": f"It is {c}."} for c in COLOURS],
    )
    return directory


def captions_folder(directory: Path) -> Path:
    """captions.txt beside the pictures."""
    lines = [f"images/{c}.png#0\tIt is {c}.\n" for c in COLOURS]
    (pictures(directory) / "captions.txt").write_text("".join(lines))
    return directory


def texts_folder(directory: Path) -> Path:
    """COLOUR.txt beside COLOUR.png."""
    for colour in COLOURS:
        (pictures(directory) / "images" / f"{colour}.txt").write_text(f"It is {colour}.\n")
    return directory


def hugging_face(directory: Path) -> Path:
    """What `Dataset.save_to_disk` writes: two Arrow streams, state.json and dataset_info.json."""
    import pyarrow as pa

    directory.mkdir(parents=True, exist_ok=True)
    names = []
    for shard in (0, 1):
        rows = [
            {"image": {"bytes": picture(c), "path": f"{c}.png"}, "question": QUESTION, "answer": f"It is {c}."}
            for c in COLOURS[shard * 4 : shard * 4 + 4]
        ]
        table = pa.Table.from_pylist(rows)
        names.append(f"data-{shard:05}-of-00002.arrow")
        with pa.OSFile(str(directory / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train", "_format_type": None}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text(json.dumps({"license": "MIT", "features": {}}))
    return directory


FORMATS = {
    "messages": messages_jsonl,
    "parquet": messages_parquet,
    "llava": llava_json,
    "llava lines": lambda d: llava_json(d, lines=True),
    "webdataset": webdataset,
    "class folders": class_folders,
    "metadata.jsonl": metadata_folder,
    "captions.txt": captions_folder,
    "texts": texts_folder,
    "hf": hugging_face,
}
KINDS = {
    "messages": "messages", "parquet": "messages", "llava": "llava", "llava lines": "llava", "webdataset": "webdataset",
    "class folders": "folder", "metadata.jsonl": "folder", "captions.txt": "folder", "texts": "folder", "hf": "hf",
}  # fmt: skip
NEEDS_PYARROW = ("parquet", "hf")
