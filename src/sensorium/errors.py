"""The two kinds of failure a user can meet.

Every message is one sentence that says what was given, what is wrong with it and what to do.
"""

from __future__ import annotations


class SensoriumError(Exception):
    """The work failed: a file, a part or the machine is at fault. The command line exits with 1."""

    exit_code = 1


class UsageError(SensoriumError):
    """The call is wrong: a flag, an argument or a recipe. The command line exits with 2."""

    exit_code = 2


def install(extra: str) -> str:
    """How to install an optional dependency group of pyproject.toml, for the end of a message."""
    return f'run `pip install -e ".[{extra}]"` in the clone of Sensorium'
