"""`sensorium data check` and `data card`: what they find, what they print, how they end."""

from __future__ import annotations

import doctest
import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

import format_files
import tiny
from format_files import FORMATS, KINDS, NEEDS_PYARROW, picture, pictures, turns, write_lines
from sensorium.cli import run
from sensorium.training.data.formats.check import check
from sensorium.training.data.formats.readers import open_set


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def sensorium(capsys, tmp_path, monkeypatch):
    """Run a command line: (exit code, stdout, stderr)."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))

    def call(*arguments):
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_wrong_with_the_examples(name, tmp_path):
    if name in NEEDS_PYARROW:
        pytest.importorskip("pyarrow")
    report = check(open_set(FORMATS[name](tmp_path)))
    assert (report.kind, report.samples, report.turns, report.pictures) == (KINDS[name], 8, 16, 8)
    assert report.ok and not report.doubts and not report.offenders and report.tokens is None


@pytest.fixture
def bad(tmp_path):
    """A data set with one of each fault."""
    pictures(tmp_path)
    (tmp_path / "images" / "torn.png").write_bytes(picture()[:60])
    rows = [
        {"id": "fine", "messages": turns("red", "images/red.png"), "source": "here", "licence": "CC0-1.0"},
        {"id": "torn", "messages": turns("red", "images/torn.png")},
        {"id": "gone", "messages": turns("red", "images/gone.png")},
        {"id": "out", "messages": turns("red", "../red.png")},
        {"id": "mute", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]},
        {"id": "ask", "messages": [{"role": "user", "content": "Hi"}]},
        {"id": "long", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x " * 400}]},
        {"id": "fine", "messages": turns("blue", "images/blue.png")},
        {"id": "again", "messages": turns("red", "images/red.png")},
    ]
    rows += [{"id": f"y{i}", "question": f"{i}?", "answer": "Yes." if i else "No"} for i in range(25)]
    return write_lines(tmp_path / "bad.jsonl", rows)


def test_every_fault_is_found_where_it_is(bad, sensorium, model):
    code, out, _ = sensorium("data", "check", bad, "--model", model, "--tokens", 300, "--json")
    [report] = json.loads(out)["data"]
    assert code == 1 and not json.loads(out)["ok"] and not report["ok"]
    assert report["broken"] == {
        "broken media": 2, "unreadable record": 1, "empty answer": 1, "no answer": 1, "too long": 1,
    }  # fmt: skip
    assert report["doubts"] == {"duplicate id": 1, "duplicate content": 1, "unbalanced yes/no": 1}
    where = {o["what"]: o["where"].rpartition(" ")[2] for o in report["offenders"]}
    assert where | {"broken media": "2", "unbalanced yes/no": ""} == {
        "broken media": "2", "unreadable record": "4", "empty answer": "5", "no answer": "6", "too long": "7",
        "duplicate id": "8", "duplicate content": "9", "unbalanced yes/no": "",
    }  # fmt: skip
    assert (report["samples"], report["yes"], report["no"]) == (33, 24, 1)
    assert report["licences"] == {"CC0-1.0": 1, "not stated": 32} and report["sources"]["here"] == 1
    assert report["longest"] > 300 and report["tokens"] > report["longest"]


def test_what_people_read(bad, sensorium, model):
    code, out, err = sensorium("data", "check", bad, "--model", model, "--tokens", 300, "--show", 2)
    assert code == 1 and err == ""
    assert "33 samples, " in out and "2 x broken media" in out and "300 fit" in out
    assert out.count("bad.jsonl, line") == 2 and "torn.png" in out
    good = format_files.messages_jsonl(bad.parent / "good")
    code, out, _ = sensorium("data", "check", good, good.parent / "images", "--no-tokens", "--format", "messages")
    assert code == 2
    code, out, _ = sensorium("data", "check", good, "--no-tokens")
    assert code == 0 and "nothing is broken" in out and "tokens" not in out


def test_tokens_are_those_of_the_composition(tmp_path, sensorium, model):
    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.training.data.formats.encode import encode

    path = write_lines(pictures(tmp_path) / "x.jsonl", [{"messages": turns("red", "images/red.png")}])
    _, out, _ = sensorium("data", "check", path, "--model", model, "--json")
    with GGUF(Path(model) / "llm.gguf") as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    [sample] = open_set(path).samples()
    assert json.loads(out)["data"][0]["tokens"] == encode(sample, tokenizer, tiny.TOKENS).length


def test_a_sample_of_a_data_set(tmp_path, sensorium):
    _, out, _ = sensorium("data", "check", format_files.webdataset(tmp_path), "--no-tokens", "--sample", 3, "--json")
    assert json.loads(out)["data"][0]["samples"] == 4  # two of each of the two shards


def test_a_damaged_shard_does_not_hide_the_others(tmp_path, sensorium):
    directory = format_files.webdataset(tmp_path)
    whole = (directory / "shard-0.tar").read_bytes()
    (directory / "shard-0.tar").write_bytes(whole[:5200])
    code, out, _ = sensorium("data", "check", directory, "--no-tokens", "--json")
    [report] = json.loads(out)["data"]
    assert code == 1 and report["broken"]["unreadable file"] == 1 and report["samples"] == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "check", "none.jsonl"], "none.jsonl does not exist"),
        (["data", "check", "."], "holds no picture"),
        (["data", "check", ".", "--format", "coco"], "'coco' is unknown"),
        (["data", "check", ".", "--media", "none"], "--media none is no directory"),
        (["data", "card", ".", "-o", "card.txt"], "must end in .md"),
        (["data", "check"], "Missing argument"),
        (["data", "card", ".", "-o", "dir.md"], "-o dir.md cannot be written (it is a directory)"),
        (["data", "card", ".", "-o", "file/CARD.md"], "file is no directory)"),
    ],
)
def test_wrong_calls(arguments, says, sensorium, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir.md").mkdir()
    (tmp_path / "file").touch()
    code, out, err = sensorium(*arguments, *(["--no-tokens"] if arguments[1] == "check" else []))
    assert code == 2 and out == "" and says in err and len(err.splitlines()) == 1


def test_the_card(tmp_path, sensorium):
    data = format_files.messages_jsonl(tmp_path / "set")
    other = format_files.webdataset(tmp_path / "tars")
    code, out, _ = sensorium("data", "card", data, other, "-o", tmp_path / "out" / "CARD.md")
    assert code == 0 and out.splitlines() == [str(tmp_path / "out" / n) for n in ("CARD.md", "CARD.png")]
    card = (tmp_path / "out" / "CARD.md").read_text()
    for path in (data, *sorted(other.glob("*.tar"))):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    lines = [
        hashlib.sha256(p.read_bytes()).hexdigest() + f"  images/{p.name}\n"
        for p in sorted((tmp_path / "set" / "images").iterdir())
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() in card and "8 files of media" in card
    assert "| CC0-1.0 | 8 |" in card and "| samples | 8 |" in card and "](CARD.png)" in card
    with Image.open(tmp_path / "out" / "CARD.png") as sheet:
        assert sheet.width == 4 * 224 and len(sheet.convert("RGB").getcolors(1 << 20)) > 8
    again = sensorium("data", "card", data, other, "-o", tmp_path / "again" / "CARD.md")
    assert again[0] == 0 and (tmp_path / "again" / "CARD.md").read_text() == card


def test_a_card_quotes_nothing_that_could_leave_its_cell(tmp_path, sensorium):
    row = {"caption": "x", "source": "a|b\n# Title <script>`", "licence": "[link](http://x)"}
    path = write_lines(tmp_path / "x.jsonl", [row])
    assert sensorium("data", "card", path, "-o", tmp_path / "CARD.md")[0] == 0
    card = (tmp_path / "CARD.md").read_text()
    assert "<script>" not in card and "\n# Title" not in card and "[link]" not in card
    assert not (tmp_path / "CARD.png").exists()  # no picture, no sheet


def test_help_of_the_group(sensorium):
    code, out, _ = sensorium("data")
    assert code == 2 and "check" in out and "card" in out
    assert sensorium("data", "check", "--help")[0] == 0


def test_the_broken_example_of_the_page(tmp_path, sensorium, monkeypatch):
    """`test_docs` runs the examples that end well; this one ends with 1."""
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    text = page.partition("<!-- file: mine/bad.jsonl -->\n```json\n")[2].partition("```")[0]
    command, _, expected = (
        page.partition("$ sensorium data check mine/bad.jsonl")[2].partition("```")[0].partition("\n")
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bad.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    code, out, _ = sensorium("data", "check", "mine/bad.jsonl", *command.split())
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert code == 1 and doctest.OutputChecker().check_output(expected, out, flags), out
