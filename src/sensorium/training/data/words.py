"""Reader of ``words.txt``: short lists of words that the modules of this package share, kept out of the code."""

from __future__ import annotations

import functools
from importlib import resources


@functools.lru_cache(maxsize=1)
def _lists() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    name = ""
    for line in resources.files(__package__).joinpath("words.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            name = line.strip("[]")
            table[name] = set()
        elif line:
            table[name].update(word.strip() for word in line.split(",") if word.strip())
    return {key: frozenset(value) for key, value in table.items()}


def word_list(name: str) -> frozenset[str]:
    """The words of one section of ``words.txt``; KeyError when there is none of that name."""
    return _lists()[name]
