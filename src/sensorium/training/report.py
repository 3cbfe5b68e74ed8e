"""The page of a run, ``report.html`` and ``loss.png`` in its output, from the recipe, the logs and the proofs alone."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorium import hub
from sensorium.training.loop import LOG
from sensorium.training.recipe import Recipe

PAGE = "report.html"
PLOT = "loss.png"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; text-align: left; }
tr + tr { border-top: 1px solid #ddd; } img { max-width: 100%; }
pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } pre { background: #222; }
tr + tr { border-color: #444; } img { background: #fff; } }
"""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a broken one, at the end of a run that was killed, is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the bias of its start; what is not finite is skipped."""
    out, mean, total = [], 0.0, 0.0
    for value in values:
        if value is not None and math.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        out.append(mean / total if total else math.nan)
    return out


def draw(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Loss and gradient norm over the steps of every stage, one under the other, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    first = 0
    for name, lines in logs.items():
        steps = [first + line["step"] for line in lines]
        loss = [math.nan if line["loss"] is None else line["loss"] for line in lines]
        (drawn,) = upper.plot(steps, loss, alpha=0.3)
        upper.plot(steps, smoothed(loss), color=drawn.get_color(), label=name)
        norms = [math.nan if line["gradient_norm"] is None else line["gradient_norm"] for line in lines]
        lower.plot(steps, norms, color=drawn.get_color(), linewidth=0.8)
        if first:
            for axes in (upper, lower):
                axes.axvline(first, color="gray", linewidth=0.8, linestyle=":")
        first = steps[-1] + 1 if steps else first
    upper.set_ylabel("loss")
    lower.set_ylabel("gradient norm")
    lower.set_xlabel("step")
    lower.set_yscale("log")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    if len(logs) > 1:
        upper.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def write_report(recipe: Recipe, overviews: Mapping[str, str], proofs: str) -> Path:
    """Write the page and the plot into the recipe's output and return the page.

    Args:
        recipe: as it ran.
        overviews: for each stage that ran now, the table shown before its first step.
        proofs: what was proven at the end.
    """
    output = Path(recipe.output)
    logs = {stage.name: read_log(recipe.directory(stage) / LOG) for stage in recipe.plan()}
    logs = {name: lines for name, lines in logs.items() if lines}
    plot = draw(logs) if logs else b""
    if plot:
        with hub.atomic_write(output / PLOT) as file:
            file.write(plot)
    rows = [_row(name, lines) for name, lines in logs.items()]
    heads = ("stage", "steps", "first loss", "last loss", "tokens a second", "minutes")
    encoded = base64.b64encode(plot).decode()
    picture = f'<img alt="loss over steps" src="data:image/png;base64,{encoded}">' if plot else ""
    page = [
        f"<h1>{html.escape(recipe.name)}</h1>", picture, _table(heads, rows), f"<p>{html.escape(proofs)}</p>",
        *(f"<h2>Before {html.escape(name)}</h2><pre>{html.escape(text)}</pre>" for name, text in overviews.items()),
        f"<h2>Recipe</h2><pre>{html.escape(recipe.dump())}</pre>",
    ]  # fmt: skip
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(recipe.name)}</title><style>{STYLE}</style>'
    with hub.atomic_write(output / PAGE, "w") as text:
        text.write(head + "\n".join(page) + "\n")
    return output / PAGE


def _row(name: str, lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    losses = smoothed([line["loss"] for line in lines])
    last = lines[-1]
    return (
        name, str(last["step"] + 1), f"{lines[0]['loss'] or math.nan:.3f}", f"{losses[-1]:.3f}",
        f"{last['tokens_per_s'] or 0:.0f}", f"{last['minutes'] or 0:.1f}",
    )  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"
