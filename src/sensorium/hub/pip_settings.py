"""The user's pip set-up: indexes, find-links, certificates, proxy, read from where pip reads it.

pip's own files and variables are read directly (pip may be missing, as in environments made by uv, and starting it
takes half a second). Whatever this reading misses is caught by the fallback to ``pip download``.
Documented at https://pip.pypa.io/en/stable/topics/configuration/.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sensorium.hub.network import Network

_DEFAULT_INDEX = "https://pypi.org/simple"
_TRUE = {"1", "true", "yes", "on", "t", "y"}
_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "client-cert",
    "proxy",
    "timeout",
)


@dataclass(frozen=True)
class PipSettings:
    """Index URLs (in order of preference), find-links places, and how to reach them."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...]
    network: Network


def read_settings() -> PipSettings:
    """pip's settings now. Files that cannot be read or parsed are passed over."""
    values = _from_files()
    values.update(_from_environment())
    indexes: list[str] = []
    if values.get("no-index", "").strip().lower() not in _TRUE:
        indexes = [
            *_words(values.get("index-url") or _uv_index() or _DEFAULT_INDEX),
            *_words(values.get("extra-index-url")),
        ]
        indexes += _words(os.environ.get("UV_INDEX")) + _words(os.environ.get("UV_EXTRA_INDEX_URL"))
    timeout = 30.0
    with contextlib.suppress(ValueError):
        timeout = max(5.0, float(values.get("timeout") or values.get("default-timeout") or timeout))
    network = Network(
        certificates=values.get("cert") or None,
        client_certificate=values.get("client-cert") or None,
        proxy=_proxy(values.get("proxy")),
        insecure_hosts=frozenset(_words(values.get("trusted-host"))),
        timeout=timeout,
    )
    # uv lets an index be named ("name=https://..."); the name is of no use here.
    plain = [url.partition("=")[2] if "=" in url.partition("://")[0] else url for url in indexes]
    return PipSettings(
        tuple(dict.fromkeys(plain)), tuple(dict.fromkeys(_find_links(values.get("find-links")))), network
    )


def _words(text: str | None) -> list[str]:
    return (text or "").split()


def _uv_index() -> str:
    return os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or ""


def _find_links(text: str | None) -> list[str]:
    """pip splits this option at white space, so a directory with a blank must be a file:// URL."""
    places: list[str] = []
    for line in (text or "").splitlines():
        whole = line.strip()
        if whole and Path(whole).expanduser().exists():
            places.append(whole)
        else:
            places += whole.split()
    return places


def _proxy(value: str | None) -> str | None:
    """pip takes ``[user:password@]host:port`` without a scheme too."""
    if not value:
        return None
    return value if "://" in value else f"http://{value}"


def _from_environment() -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in os.environ.items():
        if name.upper().startswith("PIP_") and value:
            values[name[4:].lower().replace("_", "-")] = value
    return values


def _from_files() -> dict[str, str]:
    values: dict[str, str] = {}
    for path in _files():
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, UnicodeDecodeError, configparser.Error):
            if not path.is_file():
                continue
            parser.read(path, encoding="utf-8")
            for section in ("global", "install", "download"):  # the command's own section wins, as in pip
                if parser.has_section(section):
                    values.update(
                        {key.lower().replace("_", "-"): value for key, value in parser.items(section) if value}
                    )
    return {key: value for key, value in values.items() if key in _KEYS or key == "default-timeout"}


def _files() -> list[Path]:
    """pip's configuration files, the weakest first."""
    override = os.environ.get("PIP_CONFIG_FILE", "")
    if override == os.devnull:
        return []
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    files: list[Path] = []
    with contextlib.suppress(RuntimeError):
        user = Path.home()
        if sys.platform == "win32":
            files += [Path(os.environ.get("PROGRAMDATA", "C:\\ProgramData")) / "pip" / name, user / "pip" / name]
            files.append(Path(os.environ.get("APPDATA", str(user))) / "pip" / name)
        else:
            system = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
            files += [Path(place) / "pip" / name for place in reversed(system.split(":")) if place]
            files += [Path("/etc/pip.conf"), user / ".pip" / name]
            if sys.platform == "darwin":
                files.insert(0, Path("/Library/Application Support/pip") / name)
                files.append(user / "Library/Application Support/pip" / name)
            files.append(Path(os.environ.get("XDG_CONFIG_HOME") or user / ".config") / "pip" / name)
    files.append(Path(sys.prefix) / name)
    if override:
        files.append(Path(override).expanduser())
    return files
