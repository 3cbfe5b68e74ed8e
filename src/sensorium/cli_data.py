"""`sensorium data`: look at training data before a run does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sensorium import console
from sensorium.arguments import output_file
from sensorium.errors import UsageError

if TYPE_CHECKING:
    from sensorium.training.data.formats.check import Report, Yardstick
    from sensorium.training.data.formats.reader import Reader

app = typer.Typer(help="Check training data, and describe it.", rich_markup_mode=None)

Paths = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Data sets: files or directories.", show_default=False)
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="KIND", help="messages, llava, webdataset, folder or hf. Default: by content."),
]
Media = Annotated[
    Path | None, typer.Option("--media", metavar="DIR", help="Where names of media count from. Default: beside PATH.")
]


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Check training data, and describe it."""
    if context.invoked_subcommand is None:
        console.write(context.get_help() + "\n")
        raise typer.Exit(2)


@app.command(short_help="Look for what is broken.")
def check(
    paths: Paths,
    format_: Format = None,
    media: Media = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME|DIR", help="Whose tokens are counted.")] = "mini",
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="Count no tokens: needs no model.")] = False,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", min=1, help="Longest sample. Default: the LLM's context.")
    ] = None,
    sample: Annotated[int | None, typer.Option("--sample", metavar="N", min=1, help="Look at N samples only.")] = None,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="List the first N offenders.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Read, decode and lay out every sample; exit with 1 when something is broken."""
    from sensorium.training.data.formats.check import check as check_set

    readers = _open(paths, format_, media)
    measure = None if no_tokens else _yardstick(model, tokens)
    reports = []
    with _progress("Checking") as seen:
        for reader in readers:
            reports.append(check_set(reader, measure, sample=sample, show=show, progress=seen))
    ok = all(report.ok for report in reports)
    if as_json:
        console.write_json({"ok": ok, "data": [report.to_dict() for report in reports]})
    else:
        for report in reports:
            console.write(_text(report, measure))
    raise typer.Exit(0 if ok else 1)


@app.command(short_help="Write a data card.")
def card(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CARD.md", help="The card to write.")],
    format_: Format = None,
    media: Media = None,
) -> None:
    """Write a data card: licences, sources, digests, counts and, beside it, a contact sheet."""
    from sensorium.training.data.formats.card import write_card

    if output.suffix.lower() != ".md":
        raise UsageError(f"-o {output} must end in .md; the contact sheet stands beside it as .png.")
    output = output_file(output, "-o")
    readers = _open(paths, format_, media)
    with _progress("Reading") as seen:
        written = write_card(readers, output, progress=seen)
    console.write("".join(f"{path}\n" for path in written))


def _open(paths: list[str], kind: str | None, media: Path | None) -> list[Reader]:
    from sensorium.training.data.formats.readers import open_set

    if media is not None and not media.is_dir():
        raise UsageError(f"--media {media} is no directory; give the one that names of media count from.")
    return [open_set(path, kind, media=media) for path in paths]


def _yardstick(model: str, tokens: int | None) -> Yardstick:
    """A composition's tokenizer, token counts and context."""
    from sensorium.composition import Composition
    from sensorium.loading import Parts
    from sensorium.training.data.formats.check import Yardstick

    composition = Composition.find(model)
    parts = Parts(composition)
    projectors = composition.spec.projectors

    def refuse(_: Any) -> int:
        raise UsageError(f"the model {model} takes no pictures, and the data holds some; give --model or --no-tokens.")

    image = projectors.get("image")
    count: Any = composition.tokens("image", parts.features[image.encoder].get()) if image else refuse
    limit = tokens or parts.backbone.get().context
    return Yardstick(parts.tokenizer.get(), count, composition.spec.backbone.template, limit)


def _text(report: Report, measure: Yardstick | None) -> str:
    """A report for people."""
    from sensorium.media.reading import shown

    lines = [
        f"{shown(report.name)} ({report.kind})",
        "  " + ", ".join(_many(getattr(report, f"{what}s"), what) for what in ("sample", "turn", "picture")),
    ]
    if measure and report.tokens is not None:
        mean = report.tokens / max(1, report.samples)
        lines.append(
            f"  {report.tokens:,} tokens: {mean:.0f} a sample, the longest {report.longest:,}; {measure.limit:,} fit"
        )
    if report.yes + report.no:
        lines.append(f"  answers that say yes: {report.yes:,}, no: {report.no:,}")
    for title, counted in (("broken", report.broken), ("doubtful", report.doubts)):
        if counted:
            lines.append(f"  {title}: " + ", ".join(f"{number:,} x {what}" for what, number in counted.most_common()))
    lines += [f"    {shown(o.where)}: {o.what}: {shown(o.reason)}" for o in report.offenders]
    if not report.broken:
        lines.append("  nothing is broken")
    return "\n".join(lines) + "\n"


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; how many samples there are is not known before the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    terminal = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed:,.0f} samples"), TimeElapsedColumn())
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda samples: bar.update(task, completed=samples)
