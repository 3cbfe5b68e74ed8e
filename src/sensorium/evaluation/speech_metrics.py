"""Error rates of speech: edit distance between what was meant and what was said, over phonemes or words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def edits(meant: Sequence[Any], said: Sequence[Any]) -> int:
    """The fewest insertions, deletions and replacements that turn one sequence into the other."""
    numbers = {item: i for i, item in enumerate({*meant, *said})}
    target = np.array([numbers[item] for item in said], np.int64)
    steps = np.arange(len(target) + 1)
    row = steps.copy()
    for item in meant:
        best = np.empty_like(row)
        best[0] = row[0] + 1
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (target != numbers[item]))
        row = np.minimum.accumulate(best - steps) + steps  # insertions, from the left
    return int(row[-1])


def error_rate(pairs: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> float:
    """Edits over the length of what was meant, both summed over all (meant, said) pairs; 0 for nothing at all."""
    wrong = total = 0
    for meant, said in pairs:
        wrong += edits(meant, said)
        total += len(meant)
    return wrong / total if total else 0.0


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, as word error rates compare them."""
    return re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))
