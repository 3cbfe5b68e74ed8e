"""The scorecard: one row per question that matters, every row beside its baselines, as a table, Markdown or JSON.

A row shows chance, the best constant answer, the model without a picture (blind), with another picture (shuffled), the
cascade, the model, its 95 % interval and the number of items; of speech also the same questions as text, recordings of
people, and a random projector. Rows that fail stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "text",
    "people",
    "random projector",
    "random heads",
    "blind",
    "shuffled",
    "cascade",
    "projector only",
    "model",
)
SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One line of the scorecard.

    Attributes:
        section: what the items are ("photographs").
        name: what is measured.
        chance: the score of a coin; None where there is none.
        majority: the score of the best constant answer; None where there is none.
        scores: by column (see `COLUMNS`); a column may be missing.
        difference: model minus cascade on the same items, with its paired interval.
        p: exact McNemar p-value of that difference, for rates.
        unit: "rate" (shown in percent) or "number".
        lower_is_better: for errors.
    """

    section: str
    name: str
    chance: float | None
    majority: float | None
    scores: Mapping[str, Estimate]
    difference: Estimate | None = None
    p: float | None = None
    unit: str = "rate"
    lower_is_better: bool = False

    @property
    def counted(self) -> Estimate | None:
        """The column whose items are counted: the model's, or the first where the model is not measured."""
        return self.scores.get("model") or next(iter(self.scores.values()), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to five digits; what is undefined is null."""
        model, counted = self.scores.get("model"), self.counted
        return {
            "section": self.section,
            "name": self.name,
            "chance": _plain(self.chance),
            "majority": _plain(self.majority),
            **{name.replace(" ", "_"): _plain(self.scores[name].value) for name in COLUMNS if name in self.scores},
            "ci95": [_plain(model.low), _plain(model.high)] if model else None,
            "beyond_cascade": None if self.difference is None else _estimate(self.difference),
            "p": _plain(self.p),
            "n": counted.n if counted else 0,
            "clusters": counted.clusters if counted else 0,
            "unit": self.unit,
            "lower_is_better": self.lower_is_better,
        }


@dataclass(frozen=True)
class Scorecard:
    """All rows of a suite, with what is needed to repeat them."""

    suite: str
    model: str
    rows: Sequence[Row]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def columns(self) -> list[str]:
        """The columns that at least one row has."""
        return [name for name in COLUMNS if any(name in row.scores for row in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        """What `sensorium eval --json` prints."""
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "model": self.model,
            "rows": [row.to_dict() for row in self.rows],
            "facts": dict(self.facts),
            "notes": list(self.notes),
        }

    def save(self, directory: Path) -> Path:
        """Write `<suite>.json` and `<suite>.md` into a directory; returns the first."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.suite}.md").write_text(self.to_markdown(), encoding="utf-8")
        target = directory / f"{self.suite}.json"
        target.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return target

    def to_markdown(self) -> str:
        """A table per section, for the README and the docs."""
        lines = []
        header = ["", "chance", "majority", *self.columns(), "95 %", "beyond the cascade", "n"]
        for section in dict.fromkeys(row.section for row in self.rows):
            lines += [f"**{section}**", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
            lines += [f"| {' | '.join(self._cells(row))} |" for row in self.rows if row.section == section]
            lines.append("")
        return "\n".join([*lines, *(f"- {note}" for note in self.notes), ""]).rstrip() + "\n"

    def to_table(self) -> Table:
        """The same for the terminal."""
        from rich.table import Table

        table = Table(title=f"{self.suite}: {self.model}", title_justify="left")
        for at, name in enumerate(["", "chance", "majority", *self.columns(), "95 %", "beyond the cascade", "n"]):
            table.add_column(name, justify="left" if at == 0 else "right", style="bold" if name == "model" else None)
        section = None
        for row in self.rows:
            if row.section != section:
                section = row.section
                table.add_section()
                table.add_row(f"[bold]{section}[/bold]")
            table.add_row(*self._cells(row))
        return table

    def _cells(self, row: Row) -> list[str]:
        show = _percent if row.unit == "rate" else _number
        model = row.scores.get("model")
        beyond = "" if row.difference is None else f"{show(row.difference.value, True)} {_range(row.difference, show)}"
        return [
            row.name + (" (lower is better)" if row.lower_is_better else ""),
            show(row.chance),
            show(row.majority),
            *(show(row.scores[name].value) if name in row.scores else "" for name in self.columns()),
            _range(model, show) if model else "",
            beyond,
            str(row.counted.n) if row.counted else "",
        ]


def _percent(value: float | None, sign: bool = False) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:{'+' if sign else ''}.1f}"


def _number(value: float | None, sign: bool = False) -> str:
    return "" if value is None or math.isnan(value) else f"{value:{'+' if sign else ''}.2f}"


def _range(estimate: Estimate, show: Any) -> str:
    return "" if math.isnan(estimate.low) else f"[{show(estimate.low)}, {show(estimate.high)}]"


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 5)


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": _plain(estimate.value), "ci95": [_plain(estimate.low), _plain(estimate.high)]}
