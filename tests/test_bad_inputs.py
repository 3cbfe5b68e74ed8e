"""More than 300 bad inputs through the command line: the right exit code, one sentence, no traceback, no hang."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image as Pillow

import tiny
import tiny_training
from bad_compositions import bad_compositions
from bad_files import bad_images

pytestmark = pytest.mark.timeout(120)  # one bad input takes milliseconds; a hang must not pass
COMPOSITIONS = list(bad_compositions())
IMAGES = list(bad_images())
LONGEST = 300  # characters of a sentence, beside what it quotes of a path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("good") / "tiny")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Pillow.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "bad-home"))
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SENSORIUM_DEBUG", raising=False)


def sentences(err, paths=()):
    """The complaints on standard error; progress lines aside, there is nothing else."""
    lines = [line for line in err.splitlines() if not line.startswith("Preparing the language model")]
    assert all(line.startswith("sensorium: ") for line in lines), err
    for line in lines:
        assert "Traceback" not in line and "unforeseen" not in line, err
        assert line.endswith((".", "?")), line  # "did you mean ...?"
        for path in sorted(map(str, paths), key=len, reverse=True):
            line = line.replace(path, "…")
        assert len(line) <= LONGEST, line
        assert line.isprintable(), line
    return lines


def refused(result, code, says, *paths):
    found, out, err = result
    lines = sentences(err, paths)
    assert (found, out, len(lines)) == (code, "", 1), result
    assert re.search(says, lines[0], re.IGNORECASE), lines[0]


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(tmp_path_factory, model):
    """Every bad picture described in one call: (exit code, stdout, sentence by file name), and the directory."""
    directory = tmp_path_factory.mktemp("bad-images")
    for bad in IMAGES:
        (directory / bad.name).write_bytes(bad.data)
    environment = {
        **os.environ,
        "SENSORIUM_HOME": str(tmp_path_factory.getbasetemp() / "bad-home"),
        "SENSORIUM_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "sensorium",
        "describe",
        *(str(directory / bad.name) for bad in IMAGES),
        "--model",
        str(model),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return done, directory


@pytest.mark.timeout(900)
def test_every_bad_picture_gets_its_own_sentence(described):
    done, directory = described
    lines = sentences(done.stderr, [directory])
    assert done.returncode == 1 and done.stdout == ""
    assert len(lines) == len(IMAGES) >= 60


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bad", IMAGES, ids=[bad.name for bad in IMAGES])
def test_bad_pictures(described, bad):
    done, directory = described
    mine = [line for line in sentences(done.stderr, [directory]) if str(directory / bad.name) in line]
    assert len(mine) == 1 and re.search(bad.says, mine[0], re.IGNORECASE), mine


@pytest.mark.parametrize("bad", IMAGES[::9], ids=[bad.name for bad in IMAGES[::9]])
@pytest.mark.parametrize(
    "command", [["ask", "What?", "-a"], ["classify", "-l", "a", "-l", "b"]], ids=["ask", "classify"]
)
def test_a_bad_picture_alone(sensorium, model, tmp_path, bad, command):
    (tmp_path / bad.name).write_bytes(bad.data)
    refused(sensorium(*command, tmp_path / bad.name, "--model", model), 1, bad.says, tmp_path)


ODD_FILES = {
    "directory": (lambda d: d.mkdir(), "is a directory"),
    "missing.png": (lambda d: None, "does not exist"),
    "fifo": (lambda d: os.mkfifo(d), "is a pipe"),
    "loop": (lambda d: d.symlink_to(d), "cannot be read"),
    "dangling": (lambda d: d.symlink_to("nowhere"), "does not exist"),
    "two\nlines.png": (lambda d: d.write_bytes(b"x"), r"two.lines\.png"),
    "\x1b[31mred.png": (lambda d: d.write_bytes(b"x"), "no image"),
    "\udcff\udcfe.png": (lambda d: d.write_bytes(b"x"), "no image"),
    "spaces and ümläuts.png": (lambda d: d.write_bytes(b"x"), "spaces and ümläuts.png"),
    "-.png": (lambda d: d.write_bytes(b""), "is empty"),
}


@pytest.mark.parametrize("name", ODD_FILES, ids=[ascii(name) for name in ODD_FILES])
def test_odd_files(sensorium, model, tmp_path, name):
    make, says = ODD_FILES[name]
    make(tmp_path / name)
    for command in (["ask", "What?", "-a"], ["describe"]):
        refused(sensorium(*command, str(tmp_path / name), "--model", model), 1, says, tmp_path)


ODD_NAMES = {
    "": "empty path",
    "a\0b.png": "no path",
    "x" * 300 + ".png": "cannot be read",
    "x/" * 3000: "cannot be read",
    "/dev/null": "device",
    "/dev/zero": "device",
    "/": "directory",
    ".": "directory",
    "data:image/png;base64,AAAA": "data URL",
}


@pytest.mark.parametrize("name", ODD_NAMES, ids=[ascii(name)[:30] for name in ODD_NAMES])
def test_odd_names(sensorium, model, name):
    refused(sensorium("describe", name, "--model", model), 1, ODD_NAMES[name])


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/cat.png",
        "http://127.0.0.1:1/x",
        "ftp://example.org/a",
        "s3://bucket/key",
        "FILE:///etc/passwd",
    ],
)
def test_remote_addresses_are_never_fetched(sensorium, model, address):
    for command in (["ask", "What?", "-a"], ["describe"], ["classify", "-l", "a", "-l", "b"]):
        refused(sensorium(*command, address, "--model", model), 2, "never fetched")


# Compositions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", COMPOSITIONS, ids=[bad.name for bad in COMPOSITIONS])
def test_bad_compositions(sensorium, model, picture, tmp_path, bad):
    directory = tmp_path / "model"
    shutil.copytree(model, directory)
    bad.damage(directory)
    arguments = ["ask", "What?", "-a", str(picture), "--max-tokens", "2", "--model", str(directory)]
    refused(sensorium(*arguments), bad.code, bad.says, directory, picture)


@pytest.mark.parametrize(
    "name", ["yaml-unknown-key", "manifest-gone", "onnx-cut", "lora-no-partner", "gguf-cut-header"]
)
@pytest.mark.parametrize("command", ["parts", "ask", "describe", "classify"])
def test_every_command_refuses_them_alike(sensorium, model, picture, tmp_path, command, name):
    bad = next(bad for bad in COMPOSITIONS if bad.name == name)
    directory = tmp_path / "model"
    shutil.copytree(model, directory)
    bad.damage(directory)
    more = {"parts": [], "ask": ["Hi"], "describe": [picture], "classify": [picture, "-l", "a", "-l", "b"]}[command]
    refused(sensorium(command, *more, "--model", directory), bad.code, bad.says, directory, picture)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "nowhere",
        "../mini",
        "mini/../..",
        "a\0b",
        "\udcff",
        "x" * 5000,
        "/dev/null",
        "https://example.org/mini",
        "-",
    ],
)
def test_no_models(sensorium, name):
    refused(sensorium("parts", "--model", name), 2, "is no model")


# Flags ----------------------------------------------------------------------------------------------------------------

FLAGS = [
    (["fly"], "No such command"),
    (["ASK", "hi"], "No such command"),
    (["--verbos"], "No such option"),
    (["ask"], "Missing argument"),
    (["ask", ""], "question is empty"),
    (["ask", " \t\n"], "question is empty"),
    (["ask", "a", "b"], "unexpected extra argument"),
    (["ask", "hi", "-a"], "requires an argument"),
    (["ask", "hi", "--json=yes"], "does not take a value"),
    (["ask", "hi", "--loud"], "No such option"),
    (["ask", "hi\udcff"], "valid Unicode"),
    (["ask", "hi", "--max-tokens", ""], "--max-tokens"),
    (["ask", "hi", "--max-tokens", "0"], "max.tokens"),
    (["ask", "hi", "--max-tokens", "-1"], "max.tokens"),
    (["ask", "hi", "--max-tokens", "1e3"], "--max-tokens"),
    (["ask", "hi", "--max-tokens", "1.5"], "--max-tokens"),
    (["ask", "hi", "--max-tokens", "9" * 5000], "--max-tokens"),
    (["ask", "hi", "--max-tokens", "٣٣٣x"], "--max-tokens"),
    (["ask", "hi", "--temperature", "nan"], "temperature"),
    (["ask", "hi", "--temperature", "inf"], "temperature"),
    (["ask", "hi", "--temperature", "-inf"], "temperature"),
    (["ask", "hi", "--temperature", "-0.1"], "temperature"),
    (["ask", "hi", "--temperature", "1e400"], "temperature"),
    (["ask", "hi", "--temperature", "warm"], "--temperature"),
    (["ask", "hi", "--temperature", ""], "--temperature"),
    (["ask", "hi", "--seed", "-1"], "seed"),
    (["ask", "hi", "--seed", "1.5"], "--seed"),
    (["ask", "hi", "--seed", "today"], "--seed"),
    (["ask", "hi", "-a", "-", "-a", "-"], "stands twice"),
    (["describe"], "Missing argument"),
    (["describe", "-", "-"], "stands twice"),
    (["describe", "x.png", "--max-tokens", "none"], "--max-tokens"),
    (["describe", "x.png", "--temperature", "nan"], "temperature"),
    (["classify", "PICTURE"], "--label"),
    (["classify", "PICTURE", "-l", "a"], "1 label"),
    (["classify", "PICTURE", "-l", "a", "-l", "a"], "given twice"),
    (["classify", "PICTURE", "-l", "a", "-l", " a "], "given twice"),
    (["classify", "PICTURE", "-l", "a", "-l", ""], "label is empty"),
    (["classify", "PICTURE", "-l", "a", "-l", "\n"], "label is empty"),
    (["classify", "PICTURE", "-l", "a", "-l", "b\udcff"], "valid Unicode|surrogate"),
    (["classify", "-l", "a", "-l", "b"], "Missing argument"),
    (["parts", "extra"], "unexpected extra argument"),
    (["eval", "smell"], "smell"),
    (["eval", "image", "--limit", "0"], "--limit"),
    (["eval", "image", "--limit", "many"], "--limit"),
    (["eval", "image", "--limit", "1", "--model", "nowhere"], "is no model"),
    (["bench", "nothing"], "'nothing' is unknown"),
    (["bench", "../setup"], "is unknown"),
    (["train"], "Missing argument"),
    (["train", "recipe.yaml", "--set"], "requires an argument"),
    (["features"], "Name a recipe"),
    (["features", "recipe.yaml", "--engine", "abacus"], "use local or ray"),
    (["features", "recipe.yaml", "--engine", ""], "use local or ray"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), FLAGS, ids=[" ".join(a)[:40].encode("ascii", "replace").decode() for a, _ in FLAGS]
)
def test_odd_flags(sensorium, model, picture, arguments, says):
    arguments = [str(picture) if a == "PICTURE" else a for a in arguments]
    if arguments[0] in ("ask", "describe", "classify", "parts") and "--model" not in arguments:
        arguments[1:1] = ["--model", str(model)]
    refused(sensorium(*arguments), 2, says)


def test_a_question_longer_than_the_context(sensorium, model):
    refused(sensorium("ask", "word " * 2000, "--model", model), 2, "context")


@pytest.mark.parametrize(
    "arguments",
    [
        ["What\0is this?", "--max-tokens", "2"],
        ["hi", "--max-tokens", "9" * 30],  # the context ends the answer before
        ["hi", "--max-tokens", "2", "--seed", "9" * 40],
        ["hi", "--max-tokens", "2", "--temperature", "1e308"],
        ["\u202e\x1b[31m" + "\U0001f34e" * 20, "--max-tokens", "2"],
    ],
    ids=ascii,
)
def test_what_is_odd_and_yet_right(sensorium, model, arguments):
    code, _, err = sensorium("ask", *arguments, "--model", model)
    assert (code, sentences(err)) == (0, [])


# Recipes and checkpoints ----------------------------------------------------------------------------------------------

RECIPES = {
    "empty": (b"", "mapping"),
    "list": (b"- 1\n", "mapping"),
    "binary": (bytes(range(256)), "YAML|UTF-8"),
    "open": (b"name: [1\n", "not valid YAML"),
    "twice": (b"name: a\nname: b\n", "stands here and on line 1"),
    "bomb": (b"a: &a [1]\nb: *a\n", "anchors"),
    "deep": (b"a: " + b"{b: " * 2000, "nested deeper|YAML"),
    "large": (b"#" * 300_000, "larger than 256 KiB"),
    "nothing in it": (b"name: a\n", "is missing"),
}
SETS = [
    "", "=", "x", "train.steps", "train.steps=", "train.steps=abc", "train.steps=-1", "train.steps=1e99",
    "train.steps=[", "train.rows=.nan", "train.minutes=.inf", "train.warmup=-1", "train.clip=0",
    "train.processes=0", "train.processes=3", "train.precision=fp64", "train.learning_rate.projector=2", "train=1",
    "trian.steps=1", "lora=1", "lora.rank=0", "projector.kind=linear", "projector.options.size=3",
    "projector.options=7", "data.mix={}x", "data.mix.few=1", "data.mix={single: 0}", "data.scenes=0",
    "data.seed=-1", "data.questions.smell=1", "name=a b", "output=", "composition=", "name=\udcff",
    "name=" + "y" * 500, ".=1", "a.b.c.d=1", "train.steps.x=1", "name={{}}", "train.seed=0x10000000000",
]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("command", ["train", "features"])
def test_bad_recipes(sensorium, tmp_path, command, name):
    data, says = RECIPES[name]
    (tmp_path / "recipe.yaml").write_bytes(data)
    refused(sensorium(command, tmp_path / "recipe.yaml"), 2, says, tmp_path)


@pytest.mark.parametrize(
    "name", ["gone.yaml", ".", "/dev/zero", "/dev/null", "a\0b", "\udcff.yaml", "y" * 400], ids=ascii
)
def test_no_recipes(sensorium, name):
    refused(sensorium("train", name), 2, "recipe|YAML|mapping|exist|read|larger")


@pytest.mark.parametrize("override", SETS, ids=[ascii(s)[:30] for s in SETS])
def test_bad_overrides(sensorium, model, tmp_path, override):
    plan = tiny_training.recipe(model, tmp_path / "catalogue.jsonl", tmp_path / "out")
    path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
    refused(sensorium("train", path, "--set", override), 2, "", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no checkpoint"),
        (b"", "is damaged"),
        (b"a checkpoint", "is damaged"),
        (b"\xff" * 8 + bytes(500), "is damaged"),
        (b"\x02\0\0\0\0\0\0\0{}", "is damaged"),
        ((2).to_bytes(8, "little") + b"[]", "is damaged"),
    ],
)
def test_bad_checkpoints(sensorium, model, tmp_path, content, says):
    catalogue = tiny_training.write_catalogue(tmp_path / "pictures", photos=False, names=2)
    path = tiny_training.write_recipe(tmp_path / "r.yaml", tiny_training.recipe(model, catalogue, tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text("name: x")
    if content is not None:
        (tmp_path / "out" / "checkpoint.safetensors").write_bytes(content)
    refused(sensorium("train", path, "--resume", tmp_path / "out"), 1, says, tmp_path)


# Processes: standard input, output and signals ------------------------------------------------------------------------


def process(*arguments, **options):
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in a shell's background job
    return subprocess.Popen([sys.executable, "-m", "sensorium", *map(str, arguments)], **options)


def finished(child, data=None):
    out, err = child.communicate(data, timeout=100)
    return child.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace")


def test_empty_standard_input(model):
    refused(finished(process("ask", "What?", "-a", "-", "--model", model)), 1, "is empty")


def test_text_on_standard_input(model):
    child = process("describe", "-", "--model", model, stdin=subprocess.PIPE)
    refused(finished(child, b"no picture"), 1, "no image")


def shell(line, *arguments):
    """A line of sh, where "$@" is the sensorium command line."""
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "sensorium", *map(str, arguments)]
    return finished(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def test_closed_standard_input(model):
    refused(shell('"$@" <&-', "ask", "What?", "-a", "-", "--model", model), 1, "standard input|stream")


def test_closed_standard_output(model):
    refused(shell('"$@" >&-', "ask", "Hi", "--max-tokens", "2", "--model", model), 1, "standard output")


def test_closed_standard_error_is_no_reason_to_fail(model):
    code, out, err = shell('"$@" 2>&-', "ask", "Hi", "--max-tokens", "2", "--model", model)
    assert (code, err) == (0, "") and out
    assert shell('"$@" 2>&-', "fly") == (2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_standard_output(model):
    for arguments in (["ask", "Hi", "--max-tokens", "2"], ["parts"], ["ask", "Hi", "--json", "--max-tokens", "2"]):
        refused(shell('"$@" >/dev/full', *arguments, "--model", model), 1, os.strerror(errno.ENOSPC))


def test_undecodable_arguments(model):
    code = b"import sys; from sensorium.__main__ import main; main()"
    command = [sys.executable.encode(), b"-c", code, b"ask", b"caf\xe9", b"--model", os.fsencode(model)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    refused(finished(child), 2, "valid Unicode|UTF-8")


def test_an_unwritable_cache_is_one_sentence(model, tmp_path):
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "SENSORIUM_HOME": str(tmp_path / "file" / "cache")}
    child = process("ask", "Hi", "--model", model, env=environment)
    refused(finished(child), 1, "SENSORIUM_HOME", tmp_path)


def test_ctrl_c_while_it_waits_for_a_picture(model, picture):
    """What it loads meanwhile is prepared already, or it would say so on standard error."""
    assert finished(process("ask", "Hi", "-a", picture, "--max-tokens", "1", "--model", model))[0] == 0
    child = process("ask", "Hi", "-a", "-", "--model", model, stdin=subprocess.PIPE)
    time.sleep(3)
    child.send_signal(signal.SIGINT)
    child.stdin = None if child.poll() is not None else child.stdin
    assert finished(child) == (130, "", "")


def test_ctrl_c_while_it_answers(model, picture):
    child = process("ask", "Hi", "--max-tokens", "400", "--temperature", "1", "--model", model, bufsize=0)
    while child.stdout.read(1) == b"" and child.poll() is None:
        pass
    child.send_signal(signal.SIGINT)
    code, _, err = finished(child)
    assert (code, err) in ((130, ""), (0, ""))  # it may have finished first


def test_ctrl_c_when_all_is_done():
    """Behind the last line nothing is left to interrupt, however long Python takes to leave."""
    late = "atexit.register(lambda: (print('bye', flush=True), time.sleep(0.5)))"
    code = f"import atexit, time; {late}; import sensorium.__main__ as m; m.sys.argv = ['', '--version']; m.main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert "bye\n" in iter(child.stdout.readline, "")
    child.send_signal(signal.SIGINT)
    assert child.communicate()[1] == ""
    assert child.returncode == 0


def test_the_reader_of_standard_output_goes_away(model):
    reader, writer = os.pipe()
    os.close(reader)
    child = process("ask", "Hi", "--max-tokens", "4", "--model", model, stdout=writer)
    os.close(writer)
    code, _, err = finished(child)
    assert err == "" and code in (0, 1)


def test_the_corpus_is_large():
    count = (
        len(IMAGES) + len(COMPOSITIONS) + len(FLAGS) + len(ODD_FILES) + len(ODD_NAMES) + 2 * len(RECIPES) + len(SETS)
    )
    assert count >= 300
