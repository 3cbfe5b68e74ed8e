"""The command line. Each command is a thin shell over `tasks`; everything heavy is imported inside it.

Standard output carries the result and nothing else; progress and errors go to standard error. An error is one sentence.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sensorium import cli_chat, cli_data, cli_listen, cli_media, cli_speak, cli_speech, console
from sensorium.cli_options import JsonOption, MaxTokens, ModelOption, Seed, Temperature, sampling, start
from sensorium.errors import SensoriumError, UsageError, install

app = typer.Typer(
    name="sensorium",
    help="Frozen models that read, see, hear and speak, composed into one assistant. Runs on a laptop CPU.",
    epilog="SENSORIUM_HOME moves the cache; SENSORIUM_OFFLINE=1 forbids downloads. Every command has its own --help.",
    # Plain help: rich's panels alone would take longer to import than the 0.3 s that --help may take.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Show = Annotated[bool, typer.Option("--show", help="Draw the picture, where output is a terminal with colours.")]
Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Pictures; - is standard input.", show_default=False)
]


@app.command()
def ask(
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The question, if it is not spoken.", show_default=False)
    ] = None,
    attach: cli_media.Attach = [],  # noqa: B006 (typer reads it once and never changes it)
    model: ModelOption = "mini",
    as_json: JsonOption = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    show: Show = False,
    speak: cli_speak.Speak = None,
    cascade: cli_speak.CascadeOption = False,
    ignore_end: Annotated[bool, typer.Option("--ignore-end", hidden=True, help="Go on to --max-tokens.")] = False,
) -> None:
    """Answer a question, written or spoken, about pictures if there are any."""
    from sensorium.tasks.ask import question

    speak = cli_speak.spoken_file(speak, cascade, attach)

    options = sampling(max_tokens, temperature, seed)
    if ignore_end:  # for benchmarks, which compare equal numbers of tokens
        options["stop_ids"] = frozenset()
    if text is not None:
        question(text)  # an empty one is refused before anything loads
    cli_media.check(attach, cli_media.attached)
    kinds = {cli_media.kind(name) for name in attach}
    if text is None and "speech" not in kinds and "-" not in attach:
        for name in attach:
            cli_media.refuse_neither(name)
        silent = f", and {', '.join(attach)} cannot be it, which holds no sound" if attach else ""
        raise UsageError(f"Missing argument 'TEXT'{silent}; write the question, or attach one that is spoken: -a FILE.")
    composed = start(model, kinds)
    media = [cli_media.attached(name, composed.hearing) for name in attach]
    pictures, sounds = cli_media.apart(media)
    messages = question(text, pictures, sounds)
    composed.load()
    with cli_speak.speaking(composed, speak, cascade) as speaker:
        if as_json:
            console.write_json(composed.chat(messages, speaker=speaker, **options).to_dict())
            return
        if show:
            console.show(pictures)
        console.write_stream(composed.chat(messages, stream=True, speaker=speaker, **options))


@app.command()
def describe(
    files: Files,
    model: ModelOption = "mini",
    as_json: JsonOption = False,
    max_tokens: MaxTokens = 96,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    show: Show = False,
) -> None:
    """Caption pictures, one line each."""
    options = sampling(max_tokens, temperature, seed)
    cli_media.check(files)
    composed = start(model, media={"image"}).load()
    captions: dict[str, Any] = {}

    def each(name: str) -> None:
        picture = cli_media.picture(name)
        if as_json:
            captions[name] = composed.describe(picture, **options).to_dict()
            return
        if show:
            console.show([picture])
        if len(files) > 1:
            console.write(f"{name}: ")
        console.write_stream(composed.describe(picture, stream=True, **options))

    failed = _each_file(files, each, captions)
    if as_json:
        console.write_json(captions[files[0]] if len(files) == 1 else {"files": captions})
    raise typer.Exit(failed)


@app.command()
def classify(
    files: Files,
    label: Annotated[
        list[str], typer.Option("--label", "-l", metavar="LABEL", help="A possible answer; at least two.")
    ],
    model: ModelOption = "mini",
    as_json: JsonOption = False,
    head: Annotated[str, typer.Option("--head", metavar="llm|clip", help="What compares picture and label.")] = "llm",
) -> None:
    """Give the probability of each label for a picture.

    --json prints {"labels": [{"label", "probability"}]}, highest first; for several files {"files": {FILE: {"labels":
    ...}}}, and {"error": ...} for a FILE that cannot be read.
    """
    from sensorium.tasks.classify import check_labels

    labels = check_labels(label)
    if head not in ("llm", "clip"):
        raise UsageError(f"--head is {head!r}; use llm or clip.")
    cli_media.check(files)
    probabilities: Callable[[Any], list[tuple[str, float]]]
    if head == "clip":
        from sensorium.tasks.clip import classifier

        probabilities = classifier(_two_tower(model), labels)
    else:
        composed = start(model, media={"image"}).load()
        probabilities = lambda picture: composed.classify(picture, labels)  # noqa: E731
    results: dict[str, Any] = {}

    def each(name: str) -> None:
        picture = cli_media.picture(name)
        found = probabilities(picture)
        results[name] = {"labels": [{"label": text, "probability": round(p, 6)} for text, p in found]}
        if not as_json:
            console.write((f"{name}\n" if len(files) > 1 else "") + console.bars(found))

    failed = _each_file(files, each, results)
    if as_json:
        console.write_json(results[files[0]] if len(files) == 1 else {"files": results})
    raise typer.Exit(failed)


@app.command()
def search(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where the pictures are.", show_default=False)],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to look for.", show_default=False)] = None,
    attach: Annotated[
        str | None, typer.Option("--attach", "-a", metavar="FILE", help="Look for what is like this picture.")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="How many to show.")] = 5,
    index: Annotated[Path | None, typer.Option("--index", metavar="FILE", help="Keep the index here.")] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME|DIR", help="A two-tower model.")] = "mini-clip",
    as_json: JsonOption = False,
    show: Show = False,
) -> None:
    """Find the pictures in a folder that are most like a text or a picture.

    --json prints {"query", "directory", "pictures", "encoded", "results": [{"file", "score"}], "skipped": {FILE:
    reason}}.
    """
    from sensorium.tasks import search as task

    task.check_query(text, attach, top)
    if not os.path.isdir(directory):  # noqa: PTH112 (Path raises for names that are too long)
        raise UsageError(f"{directory[:200]} is no directory; give the folder whose pictures to search.")
    picture = cli_media.picture(attach) if attach is not None else None
    with console.counting("Encoding pictures") as progress:
        result = task.search(_two_tower(model), directory, text, picture, top=top, index=index, progress=progress)
    if as_json:
        console.write_json(task.as_json(result, text if text is not None else str(attach), directory))
        return
    if result.skipped:
        console.complain(f"{len(result.skipped)} pictures cannot be read and were skipped; --json lists them.")
    for each in result.found:
        console.write(f"{each.score:6.3f}  {each.file}\n")
        if show:
            console.show([cli_media.picture(str(each.file))])
    if not result.found:
        console.complain(f"{directory} holds no pictures.")


@app.command(short_help="List every part: source, licence, size, seam.")
def parts(model: ModelOption = "mini", as_json: JsonOption = False) -> None:
    """List every part: source, licence, size, fingerprint, frozen or trained, seam."""
    from sensorium.parts import describe_parts, table
    from sensorium.tower_parts import describe_towers
    from sensorium.two_tower import TwoTower, is_two_tower

    if is_two_tower(model):
        described = describe_towers(TwoTower(model))
    else:
        described = describe_parts(start(model, media=None).load())
    if as_json:
        console.write_json(described)
    else:
        table(described)


@app.command()
def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A YAML recipe, such as recipes/mini-image.yaml.", show_default=False),
    ],
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = [],  # noqa: B006
    resume: Annotated[Path | None, typer.Option("--resume", metavar="DIR", help="Continue an interrupted run.")] = None,
) -> None:
    """Train the projectors that a recipe describes. Needs the extra "train": pip install -e ".[train]"."""
    from sensorium.training.kinds import RUNS, kind_of

    module, name = RUNS[kind_of(recipe, set_)]
    trained = _training(f"sensorium.training.{module}", name, said="train")(recipe, overrides=set_, resume=resume)
    console.write(f"{trained}\n")


@app.command(short_help="Cache the frozen features of a recipe.")
def features(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A YAML recipe.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="local|ray", help="Where to compute.")] = "local",
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = [],  # noqa: B006
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="Processes or tasks.")] = None,
    info: Annotated[bool, typer.Option("--info", help="List what is cached, and do nothing.")] = False,
    prune: Annotated[
        str | None, typer.Option("--prune", metavar="SIZE", help="Leave so much (20GB), least recently used go first.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute and cache the frozen features of a recipe. Needs the extra "train": pip install -e ".[train]"."""
    if prune is not None or info:
        from sensorium.training import feature_recipe as cache

        freed = {} if prune is None else {"freed": cache.prune(prune)}
        held = {**cache.describe(), **freed}
        console.write_json(held) if as_json else console.write(cache.table(held))
        return
    fill = _training("sensorium.training.feature_recipe", "fill_recipe", "features")
    if recipe is None:
        raise UsageError("Name a recipe, such as recipes/mini-image.yaml, or see with --info what is cached.")
    from sensorium.training.engines import check

    check(engine)
    done = fill(recipe, set_, engine=engine, workers=workers)
    if as_json:
        console.write_json({"directories": [str(directory) for directory in done]})
    else:
        console.write("".join(f"{directory}\n" for directory in done))


@app.command(name="eval", short_help="Run the scorecard.")
def evaluate(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE]...", help="image, speech or clip. Default: image.")
    ] = None,
    model: ModelOption = "mini",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N items of a kind.")] = None,
    no_scenes: Annotated[
        bool, typer.Option("--no-scenes", help="Of pictures, photographs alone: fetches no training pictures (730 MB).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the scorecard: every row with chance, blind, shuffled, cascade, n and a 95 % interval."""
    from sensorium.evaluation.run import evaluate as run_suites

    table = sys.stderr if as_json else sys.stdout
    kept = None if limit or no_scenes else Path("results")  # a quick look must not replace published results
    result = run_suites(suites or [], model=model, limit=limit, with_scenes=not no_scenes, results=kept, table=table)
    if as_json:
        console.write_json(result)


@app.command(short_help="Run the benchmarks, each beside its peer.")
def bench(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all.")] = None) -> None:
    """Run the scripts in benchmarks/, each beside its peer. Needs a source checkout."""
    import subprocess

    directory = Path(__file__).parents[2] / "benchmarks"
    scripts = [path for path in sorted(directory.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
    known = {path.stem: path for path in scripts}
    if not known:
        raise SensoriumError("The benchmarks stand in a source checkout, and this is an installed package; clone it.")
    for name in names or known:
        if name not in known:
            raise UsageError(f"benchmark {name!r} is unknown; known benchmarks: {', '.join(known)}.")
        if subprocess.run([sys.executable, str(known[name])], check=False).returncode:
            raise SensoriumError(f"The benchmark {name} failed; its output above says why.")


cli_speech.register(app)
cli_chat.register(app)
cli_listen.register(app)
cli_speak.register(app)
app.add_typer(cli_data.app, name="data", short_help="Check training data, and describe it.")


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Frozen models that read, see, hear and speak, composed into one assistant. Runs on a laptop CPU."""
    if version:
        from sensorium import __version__

        console.write(f"sensorium {__version__}\n")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        console.write(context.get_help() + "\n")
        raise typer.Exit(2)


# What commands share --------------------------------------------------------------------------------------------------


def _two_tower(name: str) -> Any:
    """The two-tower model of this name; where the generative default is named, the one that stands beside it."""
    from sensorium.two_tower import DEFAULT, TwoTower

    return TwoTower(DEFAULT if name == "mini" else name)


def _each_file(files: list[str], work: Callable[[str], None], results: dict[str, Any]) -> int:
    """Do `work` for each file; a failing one is reported, also in `results`, and the others go on.

    Returns the exit code: 1 if any failed.
    """
    failed = 0
    for name in files:
        try:
            work(name)
        except SensoriumError as error:
            if len(files) == 1:
                raise
            console.complain(str(error))
            results[name] = {"error": str(error)}
            failed = 1
    return failed


def _training(module: str, name: str, said: str = "") -> Any:
    """A function of the training half, or one sentence when its extra is not installed."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise SensoriumError(f"`sensorium {said or name}` needs PyTorch, which is not installed; {install('train')}.")
    return getattr(import_module(module), name)


# Running
# ----------------------------------------------------------------------------------------------------------------

# typer carries its own click or needs the real one, depending on its version; either way these are its base errors.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; see `console.guard`."""
    return console.guard(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, prog_name="sensorium", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _ClickError as error:
        raise _as_usage_error(error, arguments) from None


_WANTED = {  # what typer says, by its own validation or by click's, and what a person would
    r"valid integer": "a whole number",
    r"valid (number|float)": "a number",
    r"(?:greater than or equal to |in the range x>=)([0-9]+)": "{} or more",
}


def _as_usage_error(error: Any, arguments: list[str]) -> UsageError:
    context = getattr(error, "ctx", None)
    commands: Any = typer.main.get_command(app)
    begun = ["sensorium", *(name for name in arguments[:1] if name in commands.commands)]
    path = context.command_path if context else " ".join(begun)  # an option without its value has no context
    message = error.format_message().strip().rstrip(".")
    if wrong := re.match(r"Invalid value for '(\S+)': ", message):
        for pattern, wanted in _WANTED.items():
            if found := re.search(pattern, message):
                message = f"{wrong[1]} takes {wanted.format(*found.groups())}"
    return UsageError(f"{message}; see `{path} --help`.")
