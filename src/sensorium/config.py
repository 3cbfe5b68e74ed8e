"""YAML files -> validated pydantic models, with the line number in every complaint.

Compositions and recipes are files that people write and share, so they are read as untrusted input: a safe loader, a
cap on size, depth and nodes, no anchors (an alias bomb needs them), no duplicate keys, no unknown keys.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sensorium.errors import UsageError

if TYPE_CHECKING:
    import yaml
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    Model = TypeVar("Model", bound=BaseModel)

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000

Path_ = tuple[str | int, ...]
Lines = dict[Path_, int]
"""Where each key or list item of a YAML file stands: path of keys -> line, from 1."""


class KeyFault(ValueError):
    """For validators that compare several keys: what is wrong with the one at ``keys``, whose line the sentence
    names."""

    def __init__(self, message: str, *keys: str | int) -> None:
        super().__init__(message)
        self.keys = keys


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read one YAML mapping and the line of each of its keys.

    Raises:
        UsageError: the file is missing, too large, not UTF-8, not YAML, too deep, not a mapping, or uses anchors, tags
            or duplicate keys.
    """
    import yaml

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give the path of a YAML file.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give the path of a YAML file.") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES // 1024} KiB, which no composition or recipe needs.")
    loader_type: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = data.decode("utf-8-sig")
        _refuse_bombs(path, text, loader_type)
        loader = loader_type(text)
        try:
            node = loader.get_single_node()
            lines: Lines = {}
            if not isinstance(node, yaml.MappingNode):
                raise UsageError(f"{path} does not hold a mapping of keys; write `key: value` lines.")
            _collect_lines(path, node, (), lines)
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else "somewhere"
        raise UsageError(f"{path}, {where}: not valid YAML ({error.problem or error.context}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is not valid YAML ({reason}).") from None


def parse(path: Path, model: type[Model]) -> tuple[Model, Lines]:
    """Read a YAML file into `model`. Raises UsageError with file, line, key and reason."""
    data, lines = read_yaml(path)
    return validate(data, model, path, lines), lines


def validate(data: dict[str, Any], model: type[Model], path: Path, lines: Lines | None = None) -> Model:
    """Validate `data`, which came from `path`, turning pydantic's report into one sentence."""
    from pydantic import ValidationError

    try:
        return model.model_validate(data)
    except ValidationError as error:
        _explain(error, model, path, lines or {})


def kind_of(path: Path) -> str:
    """The top-level key ``kind`` of a YAML file; "" without one, and for a file that cannot be read (its reader says
    why)."""
    try:
        return str(read_yaml(path)[0].get("kind", ""))
    except UsageError:
        return ""


def where(path: Path, lines: Lines, *keys: str | int) -> str:
    """`path, line n` of the key at this path, for messages; `path` alone where the line is not known."""
    line = line_of(lines, *keys)
    return f"{path}, line {line}" if line else str(path)


def line_of(lines: Lines, *keys: str | int) -> int | None:
    """The line of the key at this path, or of its nearest parent that has one."""
    path: Path_ = keys
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _refuse_bombs(path: Path, text: str, loader_type: Any) -> None:
    """Walk the flat event stream first: building the tree of a hostile file would recurse or explode."""
    import yaml

    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=loader_type)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(
                f"{path}, line {line}: anchors and aliases (& and *) are not accepted; write the value out."
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise UsageError(f"{path}, line {line}: nested deeper or longer than any composition or recipe.")


def _collect_lines(path: Path, node: yaml.Node, keys: Path_, lines: Lines) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{path}, line {line}: a key must be a plain word.")
            here = (*keys, key.value)
            if here in lines:
                raise UsageError(
                    f"{path}, line {line}: the key {key.value!r} stands here and on line {lines[here]}; keep one."
                )
            lines[here] = line
            _collect_lines(path, value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*keys, index)] = item.start_mark.line + 1
            _collect_lines(path, item, (*keys, index), lines)


def _explain(error: ValidationError, model: type[BaseModel], path: Path, lines: Lines) -> NoReturn:
    first = error.errors(include_url=False)[0]
    location = (*first["loc"], *getattr(first.get("ctx", {}).get("error"), "keys", ()))
    at = where(path, lines, *location)
    key = ".".join(str(part) for part in location) or "the file"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}." if known else "remove it."
        raise UsageError(f"{at}: unknown key {key!r}; {hint}") from None
    if first["type"] == "missing":
        raise UsageError(f"{at}: the key {key!r} is missing.") from None
    if location[-1:] == ("[key]",):  # a key of a mapping whose keys are given
        given = f"{'.'.join(map(str, location[:-2]))} has the key {_given(first['input'])}"
    elif first["type"] == "value_error" and isinstance(first["input"], (dict, list)):  # about several keys together
        given = key if location else ""
    else:
        given = f"{key} is {_given(first['input'])}"
    raise UsageError(f"{at}: {given}{': ' if given else ''}{_wanted(first)}.") from None


def _given(value: Any) -> str:
    """A wrong value for a message: short ones as they are, mappings and lists by what they are."""
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wanted(error: ErrorDetails) -> str:
    """What to give in place of a wrong value; pydantic speaks of Python's types."""
    for kinds, wanted in _WANTED.items():
        if error["type"] in kinds.split():
            facts = error.get("ctx", {}).items()
            said = wanted.format(**{k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in facts})
            return said.replace("give 1 characters or more", "give a text that is not empty")
    message = error["msg"].removeprefix("Value error, ").removesuffix(".")
    return message[:1].lower() + message[1:]


_WANTED = {
    "int_type int_parsing int_from_float int_parsing_size": "give a whole number",
    "float_type float_parsing": "give a number",
    "finite_number": "give a finite number",
    "bool_type bool_parsing": "give true or false",
    "string_type": "give a text",
    "string_too_short": "give {min_length} characters or more",
    "too_short": "list {min_length} or more",
    "too_long": "list at most {max_length}",
    "string_too_long": "give at most {max_length} characters",
    "string_pattern_mismatch": "give a text of the form {pattern}",
    "tuple_type list_type": "give a list",
    "dict_type model_type model_attributes_type": "give a mapping of keys",
    "literal_error": "use {expected}",
    "greater_than": "give a number above {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than": "give a number below {lt}",
    "less_than_equal": "give {le} or less",
}
"""Types of pydantic's errors -> what to do."""


def _known_keys(model: type[BaseModel], location: Path_) -> list[str]:
    """The field names at `location`, walking through Optional, dict and list annotations."""
    from pydantic import BaseModel

    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        else:  # a key of a dict or an index of a list: its value type is the last type argument
            current = (getattr(current, "__args__", None) or (current,))[-1]
        for option in getattr(current, "__args__", ()):
            if isinstance(option, type) and issubclass(option, BaseModel) and type(None) in current.__args__:
                current = option
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []
