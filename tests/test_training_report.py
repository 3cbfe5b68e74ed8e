"""What a run shows and leaves for people: the line on a terminal, the plot, the page."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

import tiny_training

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from PIL import Image as Pillow

from sensorium.training.display import Display, remaining, sparkline
from sensorium.training.loop import Progress
from sensorium.training.recipe import Recipe
from sensorium.training.report import draw, read_log, smoothed, write_report


def line(step, loss=1.0, steps=10, minutes=0.0):
    return Progress(step, steps, loss, 0.5, 100.0, minutes)


def test_a_sparkline_falls_with_the_loss():
    assert sparkline([]) == "" and sparkline([3.0]) == "▁"
    assert sparkline([3, 2, 1, 0]) == "█▆▃▁"
    falling = sparkline([10 - i / 10 for i in range(100)], width=8)
    assert len(falling) == 8 and list(falling) == sorted(falling, reverse=True)
    assert sparkline([1.0, math.nan, 0.0]) == "█·▁"


def test_what_remains_is_the_sooner_of_steps_and_minutes():
    assert remaining(line(4, minutes=5.0), None) == pytest.approx(5.0)
    assert remaining(line(4, minutes=5.0), 6.0) == pytest.approx(1.0)
    assert remaining(line(9, minutes=5.0), 100.0) == pytest.approx(0.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_live_line_on_a_terminal_and_plain_lines_elsewhere(terminal):
    out = io.StringIO()
    with Display("align", 10, None, Console(file=out, force_terminal=terminal, width=120)) as show:
        for step in range(4):
            show(line(step, loss=4.0 - step, minutes=step))
    said = out.getvalue()
    assert ("step     3/10  loss 1.0000" in said) is not terminal
    assert ("tokens/s, " in said and "█" in said) is terminal


def test_smoothing_has_no_start_of_its_own_and_skips_what_is_not_finite():
    assert smoothed([5.0, 5.0, 5.0]) == pytest.approx([5.0] * 3)
    assert smoothed([5.0, math.nan, 5.0]) == pytest.approx([5.0] * 3)
    assert math.isnan(smoothed([math.nan])[0])


def test_the_page_shows_plot_stages_recipe_and_proofs(tmp_path):
    plan = tiny_training.recipe(tmp_path, tmp_path, tmp_path / "out")
    plan["stages"] = [{**{k: plan[k] for k in ("data", "train")}, "name": name} for name in ("align", "instruct")]
    recipe = Recipe.model_validate(plan)
    for name in ("align", "instruct"):
        (tmp_path / "out" / name).mkdir(parents=True)
        rows = [
            {"step": i, "loss": None if i == 2 else 3.0 - i, "gradient_norm": 1.0, "tokens_per_s": 9.0, "minutes": i}
            for i in range(4)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo'
        (tmp_path / "out" / name / "log.jsonl").write_text(text)
    page = write_report(recipe, {"align": "part <b>"}, "Frozen & proven.").read_text()
    assert "<td>align</td><td>4</td><td>3.000</td>" in page and "<td>instruct</td>" in page
    assert "part &lt;b&gt;" in page and "Frozen &amp; proven." in page and "data:image/png;base64," in page
    assert "composition:" in page
    assert Pillow.open(tmp_path / "out" / "loss.png").size[0] > 600


def test_the_plot_draws_what_was_logged(tmp_path):
    assert read_log(tmp_path / "gone") == []
    rows = [{"step": i, "loss": 1.0 / (i + 1), "gradient_norm": 1.0} for i in range(30)]
    one, two = draw({"a": rows}), draw({"a": rows, "b": rows})
    assert one[:4] == b"\x89PNG" and one != two
