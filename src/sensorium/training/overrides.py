"""``--set key.subkey=value``: values of a recipe changed from the command line, and blamed when they spoil it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from sensorium import config
from sensorium.errors import UsageError

SAME = {"steps": "epochs", "epochs": "steps", "rows": "batch_tokens", "batch_tokens": "rows"}  # said in two ways

Model = TypeVar("Model", bound=BaseModel)
Spread = Callable[[dict[str, Any]], dict[str, Any]]


def read(path: Path, model: type[Model], overrides: Sequence[str] = (), spread: Spread = dict) -> Model:
    """Read a recipe, change it and validate it.

    Args:
        path: the YAML file.
        model: what the recipe must be.
        overrides: ``key.subkey=value`` texts, the value written as YAML.
        spread: makes what is validated of what the file holds, after the changes.

    Raises:
        UsageError: the file, a key or a value is wrong; one sentence that names the line, or the override at fault.
    """
    data, lines = config.read_yaml(path)
    changed = copy.deepcopy(data)
    for text in overrides:
        override(changed, text)
    try:
        return config.validate(spread(changed), model, path, lines)
    except UsageError as error:
        _blame(data, model, path, overrides, spread)
        raise error from None


def override(data: dict[str, Any], text: str) -> None:
    """Put one ``key.subkey=value`` into ``data``; items of a list go by their name or their number."""
    key, equals, written = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{_shown(text)} is no key=value; write for example --set {_example(data)}=100.")
    if not all(key.strip().split(".")):
        raise UsageError(f"{_shown(text)}: unknown key; it has a name on each side of a dot, such as {_example(data)}.")
    try:
        value = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError(f"{_shown(text)}: the value is no YAML; quote it or write a number.") from None
    if isinstance(value, dict) and not written.lstrip().startswith("{"):  # a text that ends in a colon, such as "file:"
        value = written.strip()
    *parents, last = key.strip().split(".")
    at: Any = data
    for name, after in zip(parents, [*parents[1:], last]):
        if isinstance(at, list):
            at = _item(at, name, text)
            continue
        if at.get(name) is None:
            if after.isdigit():
                raise UsageError(f"{_shown(text)}: the recipe holds no list {name[:40]!r}; write it there.")
            at[name] = {}
        at = at[name]
        if not isinstance(at, dict | list):
            raise UsageError(f"{_shown(text)}: {name[:40]!r} holds no keys; see the recipe for what it has.")
    if not isinstance(at, dict):
        raise UsageError(f"{_shown(text)}: name a stage and a key, for example stages.align.train.steps=100.")
    at[last] = value


def _example(data: dict[str, Any]) -> str:
    """A key of this kind of recipe that takes a number."""
    return next((key for key, _ in flat(data) if key.endswith(".steps")), "train.steps")


def flat(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What a nested mapping holds, by dotted key; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, (*keys, str(key)))
    else:
        yield ".".join(keys), value


def names(given: str, key: str) -> bool:
    """Whether an override of the key ``given`` decides ``key``; one of the whole recipe reaches into its stages, which
    go by their names or their numbers."""
    ours, full = given.split("."), key.split(".")
    for way in (full, full[2:]) if full[0] == "stages" else (full,):
        for last in {way[-1], SAME.get(way[-1], way[-1])} if way else ():
            theirs = [*way[:-1], last]
            if ours[0] == theirs[0] == "stages" and any(one[1:2] and one[1].isdigit() for one in (ours, theirs)):
                theirs[1:2] = ours[1:2] or theirs[1:2]
            if ours == theirs[: len(ours)]:
                return True
    return False


def place(path: Path, overrides: Sequence[str], *keys: str | int) -> str:
    """Where the value of a key was given, for messages: an override, or a line of the file."""
    key = ".".join(map(str, keys))
    for text in reversed(overrides):
        if names(text.partition("=")[0].strip(), key):
            return _shown(text)
    _, lines = config.read_yaml(path)
    own = keys[0] != "stages" or keys[:4] in lines  # or the stage has it from the whole recipe
    return config.where(path, lines, *(keys if own else keys[2:]))


def _item(items: list[Any], name: str, text: str) -> Any:
    for i, item in enumerate(items):
        if str(i) == name or (isinstance(item, dict) and item.get("name") == name):
            return item
    raise UsageError(f"{_shown(text)}: the recipe has no stage {name[:40]!r}.")


def _blame(data: dict[str, Any], model: type[Model], path: Path, overrides: Sequence[str], spread: Spread) -> None:
    """Raise the error of the first override that spoils a recipe which is right without it."""
    if not overrides:
        return
    try:
        config.validate(spread(data), model, path)
    except UsageError:
        return
    for text in overrides:
        override(data, text)
        config.validate(spread(data), model, Path(_shown(text)))


def _shown(text: str) -> str:
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"--set {short!r}"
