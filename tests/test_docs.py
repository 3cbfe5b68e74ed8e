"""The README and the pages in docs/: their code runs, their command lines parse, what they name exists.

What a reader could copy is tested. An HTML comment before a fenced block says how:

    <!-- test -->              python: runs, all blocks of a page one after the other in one namespace
                               console: every `$ sensorium ...` line runs, and what it prints must be what follows it
                               (`...` stands for anything); a line that begins with "sensorium: " is an error
    <!-- test: run -->         console: runs and must succeed; of its output only the keys of JSON objects are compared
    <!-- file: PATH -->        the block is written to PATH; below src/sensorium it becomes that module
    <!-- registry: NAME -->    the block is one or more entries of the dictionary NAME
    <!-- recipe -->            a YAML recipe that must be valid

Everything runs on the tiny composition with random weights, under the name `mini`.
"""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
import shutil
import sys
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer

import hf_folders
import tiny
import tiny_clip
from sensorium import cli, composition

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

# Files that commands write, so that no checkout holds them; named in the pages as what they are.
WRITTEN = {
    "composition.yaml", "manifest.json", "image.onnx", "image.safetensors", "lora.safetensors", "composition/",
    "tokens.safetensors", "recipe.yaml", "catalogue.jsonl", "log.jsonl", "checkpoint.safetensors", "results/image.json",
    "results/image.md", "text-tower.safetensors", "image-tower.safetensors", "reading.onnx",
}  # fmt: skip
# What a reader writes while following a page, and the file names of examples.
EXAMPLES = {
    "talk.mp3", "talk.mp4", "talk.srt", "hello.wav", "question.wav", "answer.wav",
    "apple.jpg", "box.jpg", "llm.gguf", "palette.npy", "a.jpg",
    "a.txt", "photo.jpg", "config.json", "tokenizer.json", "pytorch_model.bin",
}  # fmt: skip
WRITTEN_BELOW = ("runs/", "mine/", "broken/")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words of the comment before it, its text, its line in the page."""

    language: str
    mark: str
    text: str
    line: int


@cache
def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r"(```+)(\w*)", lines[at])
        if not fence:
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i] == fence[1]), None)
        assert end is not None, f"{page.name}:{at + 1}: the block is not closed"
        mark = re.fullmatch(r"<!-- (.*) -->", lines[at - 1]) if at else None
        found.append(Block(fence[2], mark[1] if mark else "", "\n".join(lines[at + 1 : end]) + "\n", at + 1))
        at = end + 1
    return found


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks and comments."""
    text = re.sub(r"^(```+)\w*\n.*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


# Code
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A directory of packaged compositions with the tiny one as `mini`, and a cache that all pages share."""
    base = tmp_path_factory.mktemp("packaged")
    tiny.write(base / "compositions" / "mini", speech=True)
    tiny_clip.write(base / "compositions" / "mini-clip")
    return base


@pytest.fixture
def reader(packaged, tmp_path, monkeypatch):
    """Where a reader stands: a directory with the examples and recipes, the tiny model's LLM and an own cache."""
    monkeypatch.setattr(composition, "PACKAGED", packaged / "compositions")
    monkeypatch.setenv("SENSORIUM_HOME", str(packaged / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("mine", "broken"):
        (tmp_path / name).mkdir()
        shutil.copy(packaged / "compositions" / "mini" / "llm.gguf", tmp_path / name)
    hf_folders.from_gguf(tmp_path / "mine" / "llm.gguf", tmp_path / "mine" / "llm")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_code_of_a_page_runs(page, reader, monkeypatch, capsys):
    if page.name == "speech.md":  # the only page whose blocks need the extra `speech`
        pytest.importorskip("av")
        pytest.importorskip("hibari")
    namespace: dict = {"__name__": "docs"}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.mark.startswith("file: "):
            write(Path(block.mark.removeprefix("file: ")), block.text, monkeypatch)
        elif block.mark.startswith("registry: "):
            register(block.mark.removeprefix("registry: "), block.text, monkeypatch)
        elif block.mark == "recipe":
            from sensorium.training.recipe import load_recipe

            path = reader / "recipe.yaml"
            path.write_text(block.text)
            load_recipe(path)
        elif block.mark in ("test", "test: run") and block.language == "python":
            if "torch" in block.text:
                pytest.importorskip("torch")
            try:
                exec(compile(block.text, where, "exec"), namespace)
            except Exception as error:
                pytest.fail(f"{where}: {type(error).__name__}: {error}")
            capsys.readouterr()
        elif block.mark in ("test", "test: run") and block.language == "console":
            for command, expected in session(block.text):
                run(command, expected, where, block.mark == "test", capsys)
        else:
            assert not block.mark.startswith("test"), f"{where}: nothing runs a {block.language!r} block"


def write(path: Path, text: str, monkeypatch) -> None:
    """Write a file of the reader's; one of the package becomes a module instead, until the test ends."""
    if path.parts[:2] != ("src", "sensorium"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    if re.search(r"^(import|from) torch", text, re.M):
        pytest.importorskip("torch")
    name = ".".join(path.with_suffix("").parts[1:])
    module = types.ModuleType(name)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(text, str(path), "exec"), module.__dict__)


def register(name: str, text: str, monkeypatch) -> None:
    """Add entries, written as they stand in the file, to a dictionary of the package, until the test ends."""
    module = importlib.import_module(name.rpartition(".")[0])
    for key, value in eval("{" + text + "}", dict(vars(module))).items():
        monkeypatch.setitem(getattr(module, name.rpartition(".")[2]), key, value)


def session(text: str) -> list[tuple[str, str]]:
    """[(command, what it prints)] of a console block."""
    parts = re.split(r"^\$ ", text, flags=re.M)
    assert not parts[0].strip(), "a console block begins with `$ `"
    return [(head, rest) for head, _, rest in (part.replace("\\\n", " ").partition("\n") for part in parts[1:])]


def run(command: str, expected: str, where: str, compare: bool, capsys) -> None:
    words = shlex.split(command, comments=True)
    assert words[0] == "sensorium", f"{where}: only `sensorium` runs here, not {words[0]!r}"
    code = cli.run(words[1:])
    out, err = capsys.readouterr()
    if not compare:
        assert code == 0, f"{where}: `{command}` exits with {code}: {err}"
        if expected.startswith("{"):
            assert shape(json.loads(expected)) == shape(json.loads(out)), f"{where}: `{command}` prints {out}"
        return
    failing = expected.startswith("sensorium: ")
    assert (code != 0) == failing, f"{where}: `{command}` exits with {code}: {err}"
    given = err if failing else out
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(expected, given, flags), f"{where}: `{command}` prints\n{given}"


def shape(value):
    """A JSON value with its leaves replaced by their type; of a list, its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


# Command lines
# ----------------------------------------------------------------------------------------------------------------------


def command_lines(page: Path) -> list[str]:
    """Every `sensorium ...` of a page: in console, bash and unnamed blocks, and in inline code."""
    lines = []
    for block in blocks(page):
        if block.language in ("console", "bash", "sh", ""):
            lines += block.text.replace("\\\n", " ").splitlines()
    lines += re.findall(r"(?<!`)`([^`\n]+)`", prose(page))
    return [
        match[1]
        for line in lines
        if (match := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(sensorium(?: .*)?)$", line))
    ]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_line_parses(page):
    group = typer.main.get_command(cli.app)
    for line in command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "2>", "<", "&&")), None)]
        if not words or words[0] in ("--version", "--help"):
            continue
        try:
            with group.make_context("sensorium", words[:1], resilient_parsing=True) as context:
                name, command, _ = group.resolve_command(context, words)
                command.make_context(name, words[1:], parent=context)
        except typer.Exit:  # --help
            pass
        except cli._ClickError as error:
            pytest.fail(f"{page.name}: `{line}`: {error.format_message()}")


def test_the_readme_lists_every_command_and_no_other():
    group = typer.main.get_command(cli.app)
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Commands\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `sensorium ([a-z]+)", text, re.M))
    assert listed == set(group.commands)


# Names and links
# ----------------------------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(re.sub(r"`", "", heading)) for heading in re.findall(r"^#+ (.*)$", prose(page), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_internal_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target} names no heading of {there.name}"


def named_paths(page: Path) -> list[str]:
    """Inline code that is a path: it ends in a known suffix or in a slash."""
    suffixes = "py|md|yaml|json|jsonl|txt|tsv|toml|jpg|png|svg|npy|gguf|onnx|safetensors|bin|pth"
    found = re.findall(r"(?<!`)`([^`\n]+)`", prose(page))
    return [word for word in found if re.fullmatch(rf"\.?[\w@][\w./@-]*(?:\.(?:{suffixes})|/)", word)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_named_path_exists(page):
    written = {block.mark.removeprefix("file: ") for block in blocks(page) if block.mark.startswith("file: ")}
    for name in named_paths(page):
        if name in WRITTEN | EXAMPLES | written or name.startswith(WRITTEN_BELOW):
            continue
        places = (ROOT / name, ROOT / "src" / "sensorium" / name, page.parent / name)
        assert any(place.exists() for place in places), f"{page.name}: {name} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_places_for_numbers_are_whole(page):
    marks = re.findall(r"<!-- ([\w-]+):(begin|end) -->", page.read_text(encoding="utf-8"))
    names = [name for name, _ in marks]
    assert marks == [(name, side) for name in dict.fromkeys(names) for side in ("begin", "end")]


# Tables that repeat what a file says
# ----------------------------------------------------------------------------------------------------------------------


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the tables below a heading, without their heads."""
    text = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for i, row in enumerate(rows) if not set(row[0]) <= set("-: ") and not _is_head(rows, i)]


def _is_head(rows: list[list[str]], at: int) -> bool:
    return at + 1 < len(rows) and set(rows[at + 1][0]) <= set("-: ")


def test_the_dependencies_listed_are_those_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {
        "runtime": declared["project"]["dependencies"],
        **declared["project"]["optional-dependencies"],
        "build": declared["build-system"]["requires"],
    }
    wanted = {(group, re.match(r"[\w.-]+", line)[0].lower()) for group, lines in groups.items() for line in lines}
    listed = [
        (group, row[0].strip("`").lower(), row)
        for group in groups
        for row in table(ROOT / "docs" / "dependencies.md", f"`{group}`")
    ]
    assert {(group, name) for group, name, _ in listed} == wanted
    assert len(listed) == len(wanted), "a dependency is listed twice"
    for _, name, row in listed:
        assert len(row) == 3 and all(row), f"{name} needs a reason and a licence"


def test_the_packages_of_speech_are_listed_with_their_licences():
    from sensorium.evaluation import human_voices
    from sensorium.training.data import people, spoken

    parts = [part for module in (spoken, people, human_voices) for part in module.PACKAGES.values()]
    wanted = {(re.match(r"deb:([\w-]+)=", part.source)[1], part.licence) for part in parts}
    listed = table(ROOT / "docs" / "dependencies.md", "Debian packages of speech")
    assert {(name.strip("`"), licence) for name, _, licence in listed} == wanted


def test_the_recipe_keys_listed_are_those_of_the_schema():
    from pydantic import BaseModel

    from sensorium.training.recipe import Recipe

    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
            if name == "stages":
                yield name
            repeated = prefix == "stages." and name in ("data", "train")  # the recipe's own keys again
            yield from keys(inner, f"{prefix}{name}.") if inner and not repeated else [prefix + name]

    rows = table(ROOT / "docs" / "train.md", "Every key of a recipe")
    assert sorted(key for row in rows for key in re.findall(r"`([^`]+)`", row[0])) == sorted(keys(Recipe))


def test_the_parts_listed_are_those_of_mini():
    import yaml

    spec = yaml.safe_load((ROOT / "src/sensorium/compositions/mini/composition.yaml").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in (spec["backbone"]["part"], *(encoder["part"] for encoder in spec["encoders"].values())):
        package = part["source"].partition(":")[2]
        assert any(package in line and part["licence"] in line for line in text.splitlines()), package


def test_the_tests_that_a_page_names_exist():
    named = re.findall(
        r"`tests/(test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    )
    assert len(named) > 16
    for file, name in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in text, f"{file} has no {name}"


def test_an_encoder_and_a_projector_take_fewer_than_sixty_lines():
    page = ROOT / "docs" / "compose.md"
    added = [b for b in blocks(page) if b.mark.startswith(("file: src/", "registry: "))]
    assert len(added) == 4
    lines = sum(len(block.text.splitlines()) for block in added)
    assert lines < 60
    assert f"which take {lines} lines" in page.read_text(encoding="utf-8")
