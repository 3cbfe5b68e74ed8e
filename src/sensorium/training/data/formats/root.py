"""The directory that a data set may read: every name in a record is looked up below it, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sensorium.errors import UsageError
from sensorium.media.limits import DEFAULT
from sensorium.media.reading import shown
from sensorium.messages import decode_data_url, refuse_remote
from sensorium.training.data.formats.sample import MediaRef


class Root:
    """A data set's directory.

    Attributes:
        directory: without symbolic links.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()

    def file(self, name: str) -> Path:
        """The file of this name, which need not exist.

        Raises:
            UsageError: the name is an address, absolute, or leads out of the directory (also through a symbolic link).
        """
        refuse_remote(name)
        if not name or "\0" in name or "\\" in name or name.startswith("/") or Path(name).is_absolute():
            raise UsageError(f"{shown(name)!r} is no relative path; name files relative to the data set's directory.")
        try:
            path = (self.directory / name).resolve()
        except (OSError, RuntimeError):  # a loop of links, a name that is too long
            raise UsageError(f"{shown(name)!r} names no file that can be opened; correct the path.") from None
        if not path.is_relative_to(self.directory):
            raise UsageError(
                f"{shown(name)!r} leads out of {shown(self.directory)}; keep media below the data set's directory, or "
                "name their directory as its media directory."
            )
        return path

    def reference(self, value: object, where: str) -> MediaRef:
        """A medium as records hold it: a path, a data: URL, bytes, or a mapping with one of them.

        Args:
            value: str, bytes, a `MediaRef`, {"bytes", "path"} as Hugging Face stores pictures, or {"url"} as OpenAI
                names them.
            where: what to call bytes without a name.

        Raises:
            UsageError: it is none of these, or names a file that may not be read.
        """
        if isinstance(value, MediaRef):
            return value
        if isinstance(value, Mapping):
            held = next((value[k] for k in ("bytes", "url", "path", "image", "file_name") if value.get(k)), None)
            return self.reference(held, where)
        if isinstance(value, bytes):
            return MediaRef(f"the picture of {where}", data=value)
        if isinstance(value, str) and value[:5].lower() == "data:":
            return MediaRef(f"the picture of {where}", data=decode_data_url(value, DEFAULT.max_bytes))
        if isinstance(value, str):
            path = self.file(value)
            return MediaRef(shown(path), path=path)
        raise UsageError(
            f"a picture is given as a value of type {type(value).__name__}; give a path, bytes or a data: URL."
        )
