"""``hf:`` parts: single files of a Hugging Face repository by plain HTTPS, or from the cache of huggingface_hub."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import quote

from sensorium.hub.network import Network
from sensorium.hub.offers import Offer, Offers
from sensorium.hub.parts import Part


def offers(part: Part, *, online: bool) -> Offers:
    """The file in the user's Hugging Face cache, if it is there, and its address at HF_ENDPOINT."""
    source = part.parsed
    result = Offers(network=network())
    name = part.file.rpartition("/")[2]
    with contextlib.suppress(RuntimeError, OSError):
        there = repository(source.name)
        revision = there / "refs" / source.version
        commit = revision.read_text().strip() if revision.is_file() else source.version
        cached = there / "snapshots" / commit / part.file
        if cached.is_file():
            result.found.append(Offer(name, path=cached))
    if online and not offline():
        where = f"{endpoint()}/{quote(source.name)}/resolve/{quote(source.version, safe='')}/{quote(part.file)}"
        result.found.append(Offer(name, where))
    return result


def endpoint() -> str:
    """HF_ENDPOINT, or the public service, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> bool:
    """Whether huggingface_hub was told to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def network() -> Network:
    """How the service is reached: with the user's token, where there is one."""
    token = _token()
    return Network(headers={f"{endpoint()}/": {"authorization": f"Bearer {token}"}} if token else {})


def repository(name: str) -> Path:
    """Where huggingface_hub keeps a repository, whether it is there or not."""
    return Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub") / f"models--{name.replace('/', '--')}"


def _home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()


def _token() -> str:
    """HF_TOKEN, or the token that ``hf auth login`` has stored."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    with contextlib.suppress(RuntimeError, OSError, UnicodeDecodeError):
        return Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").read_text(encoding="utf-8").strip()
    return ""
