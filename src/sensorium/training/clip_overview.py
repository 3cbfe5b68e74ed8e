"""What is shown before the first step of a clip run: every part, what learns, and why it may be slow."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.overview import count, parts_lines, trained
from sensorium.two_tower import SIDES, Side, TwoTower


def overview_of(
    plan: ClipRecipe,
    base: TwoTower,
    heads: Mapping[Side, nn.Module],
    towers: Mapping[Side, nn.Module],
    pairs: int,
    size: int,
) -> str:
    """The table of the parts, and a line on the run.

    Args:
        plan, base: the recipe, and the composition that it begins from.
        heads: both heads.
        towers: those that learn.
        pairs, size: pairs in all, and in a step.
    """
    rows: list[tuple[str, int | str, str, str, str]] = []
    for side in SIDES:
        kind, name = getattr(base.spec.encoders, side).kind, f"encoders.{side}"
        if side not in towers:
            bytes_ = f"{base.fetch(side)[0].stat().st_size / 1e6:.1f} MB"
            rows.append((name, "", "frozen", "", f"{kind}, {bytes_}, run by ONNX Runtime, features cached"))
            continue
        learns = trained(towers[side])
        what = "pictures" if side == "image" else "texts"
        rows.append((name, learns, "trained", "float32", f"{kind}, sees its {what} in every step"))
        rows.append((name, count(towers[side]) - learns, "frozen", "float32", f"{kind}, its classifier"))
    rows += [(f"heads.{side}", count(heads[side]), "trained", "float32", type(heads[side]).__name__) for side in SIDES]
    lines = [parts_lines(rows), f"{plan.train.steps} steps of {size} of {pairs} pairs"]
    if "image" in towers:
        lines.append(
            "encoders.image learns, so its pictures are not taken from the feature cache: every step reads, encodes "
            "and changes them anew, which takes many times longer and more memory; train.batch decides both"
        )
    elif towers:
        lines.append("encoders.text learns, so every step encodes its texts anew, which takes many times longer")
    return "\n".join(lines)
