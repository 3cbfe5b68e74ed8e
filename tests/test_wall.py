"""The wall between the two halves: what a user runs never imports what training needs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as Pillow

import tiny
from sensorium.projectors import output
from sensorium.projectors.spec import KINDS

SOURCE = Path(__file__).parents[1] / "src" / "sensorium"
TRAINING = {"torch", "torchvision", "transformers", "accelerate", "peft", "datasets"}
RUNTIME = {
    "numpy", "onnxruntime", "onnx", "tokenizers", "safetensors", "PIL", "pydantic", "pydantic_core", "yaml", "httpx",
    "rich", "typer", "click", "certifi",
}  # fmt: skip
MAY_TRAIN = {f"projectors/{kind.file}.py" for kind in [*KINDS.values(), *output.KINDS.values()]}
MAY_SERVE = {f"backbones/torch_{part}.py" for part in ("engine", "runner", "cache", "lora")}  # the extra [torch]
MAY_HEAR = {  # the extra [speech]
    "media/sound.py": {"av"}, "encoders/whisper.py": {"ctranslate2"}, "tasks/transcribe.py": {"faster_whisper"},
    "generators/hibari.py": {"hibari"}, "training/data/voices.py": {"hibari"},
}  # fmt: skip
MAY_DRAW = {"resvg_py", "fontTools", "matplotlib"}  # pictures of training packages
MAY_READ = {"pyarrow"}  # tables of training data
MAY_SPREAD = {"ray"}  # features and trainings on a cluster
MAY_LOG = {"wandb"}  # where a recipe asks for it

# Imports of these fail as they do where they are not installed.
HOOK = f"""
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(TRAINING)!r}:
            raise ModuleNotFoundError("behind the wall: " + name, name=name)

sys.meta_path.insert(0, Wall())
"""


def modules():
    return sorted(path for path in SOURCE.rglob("*.py"))


def name(path):
    return path.relative_to(SOURCE).as_posix()


def imports(path):
    """(module, at the top level) of every absolute import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        yield from ((n, id(node) not in lazy) for n in names)


@pytest.mark.parametrize("path", modules(), ids=name)
def test_only_training_imports_torch(path):
    if name(path).startswith("training/") or name(path) in MAY_TRAIN | MAY_SERVE:
        return
    found = {module for module, _ in imports(path) if module.partition(".")[0] in TRAINING}
    assert not found


@pytest.mark.parametrize("path", modules(), ids=name)
def test_the_runtime_depends_on_its_dependencies_alone(path):
    allowed = RUNTIME | set(sys.stdlib_module_names) | {"sensorium"}
    if name(path) in MAY_SERVE:
        allowed = allowed | {"torch", "transformers"}
    allowed = allowed | MAY_HEAR.get(name(path), set())
    if name(path).startswith("training/") or name(path) in MAY_TRAIN:
        allowed = allowed | TRAINING | MAY_DRAW | MAY_READ | MAY_SPREAD | MAY_LOG
    found = {module.partition(".")[0] for module, _ in imports(path)} - allowed
    assert not found


def test_the_runtime_imports_training_only_where_a_command_asks_for_it():
    """`evaluation` draws scenes with the (torch-free) data code of training; nothing else reaches over the wall."""
    for path in modules():
        over = [(m, top) for m, top in imports(path) if m.startswith("sensorium.training")]
        if over and not name(path).startswith("training/"):
            assert name(path).startswith(("evaluation/", "cli")), name(path)
            assert not any(top for _, top in over), name(path)


def test_the_torch_engine_is_imported_only_where_it_was_asked_for():
    for path in modules():
        over = [(m, top) for m, top in imports(path) if m.startswith("sensorium.backbones.torch_")]
        if over and name(path) not in MAY_SERVE:
            assert name(path) == "loading.py"
            assert not any(top for _, top in over)


def test_the_scan_sees_imports(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import torch.nn as nn\ndef f():\n    from transformers import AutoModel\n    import_module('accelerate')\n"
    )
    assert set(imports(path)) == {("torch.nn", True), ("transformers", False), ("accelerate", False)}


def run(code, *arguments, home=None, fails=False):
    import os

    environment = {**os.environ, "SENSORIUM_OFFLINE": "1", **({"SENSORIUM_HOME": str(home)} if home else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )
    assert fails or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("wall") / "tiny")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("wall-picture") / "red.png"
    Pillow.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


def test_the_hook_stops_torch():
    assert "behind the wall: torch" in run(HOOK + "import torch", fails=True).stderr


def test_everything_a_user_does_works_without_the_training_half(model, picture, tmp_path):
    code = (
        HOOK
        + """
import json
import sensorium
from sensorium.cli import run

directory, picture = sys.argv[1:]
model = sensorium.load(directory, progress=False)
answer = model.ask("What is it?", image=picture, max_tokens=3)
model.ask("Hello", max_tokens=3)
model.classify(picture, ["a", "b"])
model.describe(picture, max_tokens=3)
model.embed(image=picture)
"".join(model.chat([{"role": "user", "content": "Hi"}], stream=True, max_tokens=3))
options = ["--model", directory]
assert run(["ask", "What?", "-a", picture, "--max-tokens", "3", *options]) == 0
assert run(["describe", picture, "--max-tokens", "3", *options]) == 0
assert run(["classify", picture, "-l", "a", "-l", "b", *options]) == 0
assert run(["parts", *options]) == 0
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    )
    done = run(code, model, picture, home=tmp_path / "home")
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert "onnxruntime" in loaded
    assert not [m for m in loaded if m.partition(".")[0] in TRAINING or m.startswith("sensorium.training")]


def test_the_training_commands_say_what_is_missing(tmp_path):
    code = (
        HOOK.replace("raise ModuleNotFoundError", "return None  #")
        + """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
from sensorium.cli import run
sys.exit(run([sys.argv[1], "recipe.yaml"]))
"""
    )
    for command in ("train", "features"):
        done = run(code, command, fails=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert 'pip install -e ".[train]"' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], ["train", "--help"], []])
def test_help_imports_nothing_heavy(arguments):
    code = """
import json, sys
from sensorium.cli import run
run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    loaded = {m.partition(".")[0] for m in json.loads(run(code, *arguments).stderr.splitlines()[-1])}
    # pydantic is not among them: newer versions of typer import it themselves
    heavy = {"onnxruntime", "onnx", "numpy", "PIL", "httpx", "rich", "tokenizers", "safetensors", *TRAINING}
    assert not heavy & loaded


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, sensorium\nprint(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(run(code).stdout.split())
    assert not {"numpy", "onnxruntime", "PIL", "typer", "pydantic", "yaml", *TRAINING} & loaded
