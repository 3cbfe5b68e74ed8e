"""The command line: exit codes, one sentence per error, JSON and nothing else on standard output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import tiny
from sensorium.cli import run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Pillow.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def cache(home, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(home))
    monkeypatch.delenv("SENSORIUM_DEBUG", raising=False)


def process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "sensorium", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def one_sentence(err):
    lines = [line for line in err.strip().splitlines() if not line.startswith("Preparing ")]  # progress, once a cache
    assert len(lines) == 1, err
    assert lines[0].startswith("sensorium: ") and lines[0].endswith(".")
    return lines[0]


# Wrong calls
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fly"], "No such command 'fly'"),
        (["ask"], "Missing argument 'TEXT'"),
        (["ask", "hi", "--volume"], "No such option: --volume"),
        (["ask", "hi", "there"], "unexpected extra argument"),
        (["ask", ""], "question is empty"),
        (["ask", " \n "], "question is empty"),
        (["ask", "hi", "--model", "nowhere"], "'nowhere' is no model"),
        (["ask", "hi", "--model", ""], "'' is no model"),
        (["ask", "hi", "--max-tokens", "many"], "--max-tokens"),
        (["ask", "hi", "--max-tokens", "-3"], "--max-tokens -3 is out of range; give a whole number"),
        (["ask", "hi", "--seed", "-1"], "--seed -1 is out of range"),
        (["ask", "hi", "--temperature", "nan"], "temperature"),
        (["ask", "hi", "--temperature", "-1"], "temperature"),
        (["ask", "hi", "--temperature", "inf"], "temperature"),
        (["ask", "hi", "--seed", "1.5"], "--seed"),
        (["ask", "hi", "-a", "https://example.org/cat.png", "--model", "TINY"], "remote address"),
        (["describe", "File:///tmp/a.png", "--model", "TINY"], "is an address, .* give the path alone"),
        (["describe"], "Missing argument 'FILE...'"),
        (["describe", "-", "-", "--model", "TINY"], "stands twice"),
        (["classify", "x.png"], "--label"),
        (["classify", "x.png", "-l", "apple"], "1 label was given"),
        (["classify", "x.png", "-l", "apple", "-l", "apple"], "'apple' was given twice"),
        (["classify", "x.png", "-l", "apple", "-l", " "], "a label is empty"),
        (["parts", "--model", "nowhere"], "'nowhere' is no model"),
        (["features", "r.yaml", "--engine", "abacus"], "use local or ray"),
    ],
)
def test_wrong_calls_exit_with_2_and_one_sentence(sensorium, model, arguments, reason):
    code, out, err = sensorium(*(model if a == "TINY" else a for a in arguments))
    assert code == 2
    assert out == ""
    import re

    assert re.search(reason, one_sentence(err), re.IGNORECASE)


def test_no_command_prints_the_help_and_exits_with_2(sensorium):
    code, out, err = sensorium()
    assert code == 2 and "Commands:" in out and err == ""


def test_help_and_version_exit_with_0(sensorium):
    assert sensorium("--version") == (0, "sensorium 0.1.0\n", "")
    code, out, _ = sensorium("--help")
    assert code == 0
    for command in ("ask", "listen", "chat", "describe", "classify", "parts", "train", "features", "eval", "bench"):
        assert f"\n  {command} " in out
        code, text, _ = sensorium(command, "--help")
        assert code == 0 and "Usage: sensorium " + command in text
    for later in ("serve", "watch", "imagine"):
        assert f"\n  {later} " not in out


# Failing work
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.png", None),
        ("empty.png", b""),
        ("text.png", b"hello, I am text"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0"),
    ],
)
def test_unreadable_pictures_exit_with_1(sensorium, model, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for arguments in (["ask", "what?", "-a"], ["describe"], ["classify", "-l", "a", "-l", "b"]):
        code, out, err = sensorium(*arguments, tmp_path / name, "--model", model)
        assert code == 1 and out == ""
        assert name in one_sentence(err)


def test_standard_input_is_called_so(model):
    child = process("describe", "-", "--model", model, stdin=subprocess.PIPE)
    out, err = child.communicate(b"", timeout=120)
    assert (child.returncode, out) == (1, b"")
    assert one_sentence(err.decode()).startswith("sensorium: Standard input is empty; ")


def test_what_to_do_with_a_drawing(sensorium, model, tmp_path):
    (tmp_path / "a.svg").write_text("<svg></svg>")
    code, _, err = sensorium("describe", tmp_path / "a.svg", "--model", model)
    assert code == 1
    assert "is an SVG image, which cannot be decoded here; save it as a PNG, JPEG, " in one_sentence(err)


def test_a_directory_is_no_picture(sensorium, model, tmp_path):
    code, out, err = sensorium("describe", tmp_path, "--model", model)
    assert code == 1 and out == ""
    one_sentence(err)


def test_a_damaged_composition_exits_with_1(sensorium, tmp_path):
    broken = tiny.write(tmp_path / "broken")
    (broken / "image.onnx").write_bytes(b"damaged")
    code, out, err = sensorium("ask", "hi", "--model", broken)
    assert code == 1 and out == "" and "damaged" in one_sentence(err)


def test_training_without_its_extra_says_what_to_install(sensorium, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = sensorium("train", "recipe.yaml")
    assert code == 1 and out == "" and 'pip install -e ".[train]"' in one_sentence(err)


def test_the_unforeseen_is_one_sentence_and_a_traceback_on_request(sensorium, monkeypatch, model):
    from sensorium.composition import Composition

    def break_down(name):
        raise ZeroDivisionError("a bug\nwith two lines")

    monkeypatch.setattr(Composition, "find", break_down)
    code, out, err = sensorium("parts", "--model", model)
    assert code == 1 and out == "" and "ZeroDivisionError: a bug" in one_sentence(err)
    monkeypatch.setenv("SENSORIUM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["parts", "--model", model])


# Working commands
# ------------------------------------------------------------------------------------------------------


def test_ask_without_a_picture(sensorium, model):
    code, out, err = sensorium("ask", "Hello", "--model", model, "--max-tokens", 8)
    assert code == 0 and out.endswith("\n")
    assert "Traceback" not in err


def test_ask_json_has_the_documented_shape_and_nothing_else(sensorium, model, picture):
    code, out, _ = sensorium(
        "ask", "What?", "-a", picture, "-a", picture, "--model", model, "--max-tokens", 6, "--json"
    )
    assert code == 0 and out.count("\n") == 1
    found = json.loads(out)
    assert set(found) == {"answer", "model", "usage", "timings"}
    assert found["model"] == "tiny" and isinstance(found["answer"], str)
    assert set(found["usage"]) == {"prompt_tokens", "media_tokens", "completion_tokens"}
    assert found["usage"]["media_tokens"] == 2 * tiny.TOKENS
    assert 1 <= found["usage"]["completion_tokens"] <= 6
    assert set(found["timings"]) == {"load_s", "encode_s", "prefill_s", "decode_s", "tokens_per_s"}
    assert all(value >= 0 for value in found["timings"].values())


def test_the_same_seed_gives_the_same_answer(sensorium, model):
    arguments = ["ask", "Hi", "--model", model, "--max-tokens", 12, "--temperature", 1.5, "--seed"]
    assert sensorium(*arguments, 3)[1] == sensorium(*arguments, 3)[1]
    assert len({sensorium(*arguments, seed)[1] for seed in range(5)}) > 1


def test_describe_names_files_when_there_are_several_and_goes_on_after_a_broken_one(
    sensorium, model, picture, tmp_path
):
    code, out, err = sensorium("describe", picture, tmp_path / "gone.png", picture, "--model", model, "--max-tokens", 4)
    assert code == 1
    assert out.count(f"{picture}: ") == 2
    assert "gone.png" in one_sentence(err)
    code, out, _ = sensorium("describe", picture, "--model", model, "--max-tokens", 4)
    assert code == 0 and f"{picture}: " not in out


def test_classify_json_for_one_file_and_for_several(sensorium, model, picture):
    arguments = ["classify", picture, "-l", "apple", "-l", "an orange", "--model", model, "--json"]
    code, out, _ = sensorium(*arguments)
    assert code == 0 and out.count("\n") == 1
    labels = json.loads(out)["labels"]
    assert {entry["label"] for entry in labels} == {"apple", "an orange"}
    assert sum(entry["probability"] for entry in labels) == pytest.approx(1, abs=1e-5)
    assert labels[0]["probability"] >= labels[1]["probability"]
    code, out, _ = sensorium(*arguments, picture + "x")
    found = json.loads(out)["files"]
    assert code == 1 and list(found) == [picture, picture + "x"] and found[picture]["labels"]
    assert found[picture + "x"]["error"].endswith("does not exist; check the path.")


@pytest.mark.parametrize("command", [["describe"], ["classify", "-l", "a", "-l", "b"]])
def test_json_says_so_when_every_file_is_broken(sensorium, model, tmp_path, command):
    code, out, _ = sensorium(*command, tmp_path / "1.png", tmp_path / "2.png", "--model", model, "--json")
    assert code == 1
    assert [set(found) for found in json.loads(out)["files"].values()] == [{"error"}] * 2


def test_json_is_ascii_where_standard_output_is_no_utf8(monkeypatch):
    import io

    from sensorium import console

    for encoding, shown in (("utf-8", "\u732b"), ("latin-1", r"\u732b"), ("ascii", r"\u732b")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="replace"))
        console.write_json({"answer": "\u732b"})
        assert raw.getvalue().decode(encoding) == f'{{"answer": "{shown}"}}\n'
    monkeypatch.undo()


def test_classify_draws_bars(sensorium, model, picture):
    code, out, _ = sensorium("classify", picture, "-l", "apple", "-l", "pear", "--model", model)
    assert code == 0 and out.count("%") == 2 and "█" in out


def test_parts_lists_every_part_and_when_the_lora_is_active(sensorium, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = sensorium("parts", "--model", model)
    assert code == 0
    for needed in (
        "backbone",
        "encoders.image",
        "projectors.image",
        "frozen",
        "trained",
        "Apache-2.0",
        "only in conversations",
    ):
        assert needed in out
    code, out, _ = sensorium("parts", "--model", model, "--json")
    parts = {part["name"]: part for part in json.loads(out)["parts"]}
    assert set(parts) == {"backbone", "encoders.image", "projectors.image", "lora"}
    assert parts["lora"]["state"] == "trained" and len(parts["lora"]["fingerprint"]) == 64
    assert parts["projectors.image"]["seam"] == "[16, 24] -> embeddings [4, 64]"


# Processes
# -------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    code = "import sys, sensorium.cli as c; c.run(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not {"numpy", "onnxruntime", "onnx", "pydantic", "rich", "httpx", "torch", "transformers", "PIL"} & set(
        loaded
    )


def test_asking_imports_no_training_half(model, picture):
    code = "import sys, sensorium.cli as c; c.run(sys.argv[1:]); print('\\n', *sys.modules, file=sys.stderr)"
    arguments = ["ask", "What?", "-a", picture, "--model", model, "--max-tokens", "3"]
    subprocess.run([sys.executable, "-m", "sensorium", *arguments], capture_output=True, check=True)  # prepares it
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "onnxruntime" in loaded
    assert not {"torch", "transformers", "rich", "httpx", "onnx"} & loaded


def test_a_picture_from_standard_input(model, picture):
    child = process("ask", "What?", "-a", "-", "--model", model, "--max-tokens", 3, "--json", stdin=subprocess.PIPE)
    out, err = child.communicate(Path(picture).read_bytes(), timeout=120)
    assert child.returncode == 0, err
    assert json.loads(out)["usage"]["media_tokens"] == tiny.TOKENS


def test_interrupting_exits_with_130_and_says_nothing(model):
    code = (
        "import sys, sensorium.cli, sensorium.__main__ as m; print(end='ready', file=sys.stderr, flush=True)\nm.main()"
    )
    arguments = ["ask", "Hi", "-a", "-", "--model", model]  # waits for its picture
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes)
    assert child.stderr.read(5) == b"ready"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err) == (130, b"", b"")


def test_interrupting_an_answer_exits_with_130(sensorium, model, monkeypatch):
    from sensorium.answer import Stream

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "__next__", interrupted)
    assert sensorium("ask", "Hi", "--model", model) == (130, "", "")


def test_a_closed_pipe_is_quiet(model):
    arguments = ["ask", "Hi", "--model", model, "--max-tokens", "4"]
    subprocess.run([sys.executable, "-m", "sensorium", *arguments], capture_output=True, check=True)  # prepares it
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.Popen(
        [sys.executable, "-m", "sensorium", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    _, err = child.communicate(timeout=120)
    assert err == b""
    assert child.returncode in (0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110
@pytest.mark.parametrize("command", [["--help"], ["ask", "--help"], ["parts"], ["parts", "--json"]])
def test_a_full_disk_is_one_sentence(model, command):
    arguments = [*command, "--model", model] if command[0] == "parts" else command
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        child = [sys.executable, "-m", "sensorium", *arguments]
        done = subprocess.run(child, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert "Standard output cannot be written (No space left on device)" in one_sentence(done.stderr)


@pytest.mark.parametrize("name", ["x" * 5000, "x\0y", "y/" * 3000])
def test_impossible_names_are_one_sentence(sensorium, model, name):
    for names in ([name], [name, name]):
        code, out, err = sensorium("describe", *names, "--model", model)
        assert code == 1 and out == ""
        assert all(line.endswith(".") and "unforeseen" not in line for line in err.strip().splitlines()[-1:])
    code, out, err = sensorium("ask", "hi", "--model", name)
    assert code == 2 and out == "" and "unforeseen" not in one_sentence(err)


def test_preview_fits_its_box():
    from sensorium.preview import half_blocks

    for shape in ((10, 300, 3), (300, 10, 3), (1, 1, 3), (48, 64, 3)):
        lines = half_blocks(np.zeros(shape, np.uint8), columns=40, rows=16).split("\n")
        assert 1 <= len(lines) <= 16
        assert all(line.count("▀") <= 40 for line in lines)


def test_preview_in_256_colours_is_near_the_picture():
    from sensorium.preview import half_blocks, nearest_256

    pixels = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [128, 128, 128], [95, 135, 175], [8, 8, 8]], np.uint8)
    assert nearest_256(pixels).tolist() == [16, 231, 196, 244, 67, 232]
    drawn = half_blocks(np.full((8, 8, 3), (255, 0, 0), np.uint8), columns=4, rows=2, colours="256")
    assert drawn.count("\x1b[38;5;196m\x1b[48;5;196m▀") == 8 and "38;2" not in drawn


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({"COLORTERM": "truecolor"}, True, "24 bit"),
        ({"COLORTERM": "24bit"}, True, "24 bit"),
        ({}, True, "256"),
        ({"COLORTERM": "truecolor"}, False, None),
        ({"NO_COLOR": "1", "COLORTERM": "truecolor"}, True, None),
        ({"TERM": "dumb"}, True, None),
    ],
)
def test_preview_takes_the_colours_that_the_terminal_has(monkeypatch, environment, terminal, expected):
    from sensorium.preview import colours

    for name in ("COLORTERM", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = type("Stream", (), {"isatty": lambda self: terminal})()
    assert colours(stream) == expected


def test_going_on_behind_the_end_gives_exactly_the_tokens_asked_for(sensorium, model):
    for count in (3, 40):
        code, out, _ = sensorium("ask", "hi", "--model", model, "--json", "--max-tokens", count, "--ignore-end")
        answer = json.loads(out)
        assert code == 0 and answer["usage"]["completion_tokens"] == count


def test_the_benchmark_of_cold_starts_refuses_unequal_numbers_of_tokens(monkeypatch):
    import importlib.util

    path = Path(__file__).parents[1] / "benchmarks" / "cold_start.py"
    monkeypatch.syspath_prepend(str(path.parent))  # as where it is run as a script
    spec = importlib.util.spec_from_file_location("cold_start", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.check_tokens({"sensorium": 10, "transformers float32": 10}, 10)
    with pytest.raises(SystemExit, match=r"float32 generated 4 tokens where 10 were asked for"):
        bench.check_tokens({"sensorium": 10, "transformers float32": 4}, 10)
