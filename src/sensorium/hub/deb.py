"""``deb:`` parts: Debian packages through apt's configured sources. They are unpacked as archives, never installed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

from sensorium.hub.network import Network, Unreachable
from sensorium.hub.offers import Offer, Offers, run_tool, single_file
from sensorium.hub.parts import Part

_LINE = re.compile(r"'(?P<url>\S+)' (?P<name>\S+) (?P<size>\d+) (?P<digest>\S+)")


def offers(part: Part, *, online: bool) -> Offers:
    """The package's address from ``apt-get download --print-uris``, which needs no rights and fetches nothing."""
    result = Offers()
    apt = shutil.which("apt-get")
    if apt is None:
        result.notes.append("this machine has no apt-get: deb: parts need Debian, Ubuntu or a system like them")
        return result
    try:
        lines = run_tool([apt, "download", "--print-uris", "-q", _package(part)], directory=Path("/")).splitlines()
        result.network = Network(proxy=_proxy())
    except Unreachable as reason:
        hint = "; run apt-get update, it may not know the package yet" if "locate" in str(reason) else ""
        result.notes.append(f"{reason}{hint}")
        return result
    for match in filter(None, map(_LINE.match, lines)):
        url, name = match["url"], unquote(match["name"])
        digest = match["digest"].partition("SHA256:")[2].lower()
        if digest and digest != part.sha256:
            result.mismatch = True
            result.notes.append(f"apt offers {name}, whose sha256 {digest} is not the pinned one")
        elif url.startswith(("file:", "copy:")):
            result.found.append(Offer(name, path=Path(unquote(url.partition(":")[2])), sha256=digest))
        elif url.startswith(("http://", "https://")) and online:
            result.found.append(Offer(name, url, sha256=digest, size=int(match["size"])))
    return result


def native(part: Part, directory: Path) -> Path:
    """Let apt-get download the package (mirror lists, cdroms, logins in auth.conf: apt knows them all)."""
    apt = shutil.which("apt-get")
    if apt is None:
        raise Unreachable("this machine has no apt-get: deb: parts need Debian, Ubuntu or a system like them")
    run_tool([apt, "download", "-q", _package(part)], directory=directory)
    return single_file(directory)


def _package(part: Part) -> str:
    source = part.parsed
    return f"{source.name}={source.version}" if source.version else source.name


def _proxy() -> str | None:
    """apt's own proxy, which is often a cache for packages only; None leaves the environment's."""
    tool = shutil.which("apt-config")
    if tool is None:
        return None
    output = run_tool([tool, "shell", "P", "Acquire::http::Proxy"], directory=Path("/"))
    value = "".join(shlex.split(output)).partition("=")[2]
    return value if value.startswith(("http://", "https://")) else None
