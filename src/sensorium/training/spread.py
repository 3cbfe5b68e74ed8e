"""What a recipe says of all its stages, put under what each stage says itself."""

from __future__ import annotations

import copy
from typing import Any

INSTEAD = {"steps": "epochs", "rows": "batch_tokens"}  # two ways to say one thing


def spread(data: dict[str, Any]) -> dict[str, Any]:
    """Put the recipe's own data and train under those of each stage, so that a stage names only what differs."""
    stages = data.get("stages")
    if not isinstance(stages, list):
        return data
    result = copy.deepcopy(data)
    for stage in result["stages"]:
        if isinstance(stage, dict):
            for section in ("data", "train"):
                stage[section] = _over(data.get(section), stage.get(section))
    return result


def _over(below: Any, above: Any) -> Any:
    if above is None:
        return copy.deepcopy(below)
    if isinstance(below, dict) and isinstance(above, dict):
        said = {other for pair in INSTEAD.items() for one, other in (pair, pair[::-1]) if above.get(one) is not None}
        below = {k: v for k, v in below.items() if k not in said}
        # weights are a whole: a stage's mix of questions is not added to the recipe's
        whole = ("mix", "questions", "options", "sets")
        return {
            k: above[k] if k in above and (k in whole or k not in below) else _over(below.get(k), above.get(k))
            for k in (*below, *(key for key in above if key not in below))
        }
    return above
