"""What a registry answers when it is asked for a part: places where the archive may lie."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.hub.network import Network, Unreachable


@dataclass(frozen=True)
class Offer:
    """One place of an archive: a local ``path`` or a ``url``; the digest and size that the registry declares."""

    filename: str
    url: str = ""
    path: Path | None = None
    sha256: str = ""
    size: int | None = None


@dataclass
class Offers:
    """All places found, best first, how to reach them, and why other places gave nothing (clauses for a message).

    ``mismatch`` says that the registry does publish this version, but under another digest: then no other way to the
    same registry needs to be tried.
    """

    found: list[Offer] = field(default_factory=list)
    network: Network = field(default_factory=Network)
    notes: list[str] = field(default_factory=list)
    mismatch: bool = False


def run_tool(command: Sequence[str], *, directory: Path) -> str:
    """Run a registry's own client in ``directory``; its standard output.

    Raises:
        Unreachable: the program is missing or fails; the clause ends with its own last words.
    """
    name = Path(command[0]).name
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=3600,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unreachable(f"{name} cannot be run ({type(error).__name__})") from error
    if result.returncode != 0:
        raise Unreachable(f"{name} says: {last_words(result.stderr or result.stdout)}")
    return result.stdout


def last_words(text: str) -> str:
    """The line of a tool's output that tells most: its last error, or its last line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "e:", "npm err", "npm error"))]
    return ((errors or lines or ["nothing"])[-1])[:200].rstrip(".")


def single_file(directory: Path) -> Path:
    """The one file that a tool has put into ``directory``.

    Raises:
        Unreachable: there is none, or there are several.
    """
    files = [path for path in directory.iterdir() if path.is_file()]
    if len(files) != 1:
        raise Unreachable(f"it brought {len(files)} files instead of one")
    return files[0]
