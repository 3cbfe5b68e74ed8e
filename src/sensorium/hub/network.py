"""HTTP for the hub: one client with the user's proxy, certificates and credentials; resumable, bounded downloads."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from sensorium.errors import SensoriumError
from sensorium.hub.paths import write_error
from sensorium.hub.progress import Report, megabytes

if TYPE_CHECKING:
    import ssl

    import httpx

ATTEMPTS = 5
BACKOFF = 0.5  # seconds before the second attempt, doubled before each further one
MAX_DOWNLOAD = 64 << 30
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_USER_AGENT = "sensorium"


class Unreachable(Exception):
    """A source did not deliver; the message is a clause without a full stop. Another source may still do."""


@dataclass(frozen=True)
class Network:
    """How a registry is reached, as the user has set up its own client (pip, npm, apt).

    Attributes:
        certificates: a bundle file or directory of authorities to trust instead of the usual ones.
        client_certificate: a PEM file with certificate and key, for servers that ask for one.
        proxy: URL of a proxy; None takes HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
        insecure_hosts: hosts ("name" or "name:port") whose certificate is not checked, because the user said so. The
            pinned sha256 still protects what comes from them. "*" is every host.
        headers: headers for URLs that start with a prefix: ``{"https://host/path/": {"authorization": "Bearer ..."}}``.
        timeout: seconds without a byte before an attempt is given up.
    """

    certificates: str | None = None
    client_certificate: str | None = None
    proxy: str | None = None
    insecure_hosts: frozenset[str] = frozenset()
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    timeout: float = 30.0


def redact(url: str) -> str:
    """``url`` without its user, password, query and fragment, fit for a message."""
    pieces = urlsplit(url)
    return urlunsplit((pieces.scheme, pieces.netloc.rpartition("@")[2], pieces.path, "", ""))


@contextlib.contextmanager
def connect(network: Network, url: str) -> Iterator[httpx.Client]:
    """A client for the host of ``url``.

    Raises:
        Unreachable: the proxy or certificate settings cannot be used.
    """
    import httpx

    try:
        client = httpx.Client(
            verify=_ssl_context(network, url),
            proxy=network.proxy,
            follow_redirects=True,
            max_redirects=10,
            timeout=httpx.Timeout(network.timeout, connect=min(network.timeout, 15.0)),
            headers={"user-agent": _USER_AGENT},
        )
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise Unreachable(f"the proxy or certificate settings cannot be used: {_clause(error)}") from error
    with client:
        yield client


def _ssl_context(network: Network, url: str) -> ssl.SSLContext:
    pieces = urlsplit(url)
    insecure = {"*", pieces.hostname or "", pieces.netloc.rpartition("@")[2]} & network.insecure_hosts
    named = (os.environ.get(name, "") for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"))
    extra = tuple(dict.fromkeys(os.path.realpath(path) for path in named if path))
    return _build_context(bool(insecure), network.certificates, network.client_certificate, extra)


@functools.lru_cache(maxsize=8)
def _build_context(
    insecure: bool, certificates: str | None, client_certificate: str | None, extra: tuple[str, ...]
) -> ssl.SSLContext:
    """A context costs 0.1 s for every bundle that it loads, so it is built once."""
    import ssl

    if insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif certificates:
        where = Path(certificates).expanduser()
        directory = where.is_dir()
        context = ssl.create_default_context(
            cafile=None if directory else str(where), capath=str(where) if directory else None
        )
    else:
        # The system's authorities (SSL_CERT_FILE, or where a company's proxy is among them) and, as macOS and some
        # containers have none, certifi's; then the bundles that other clients are told to trust.
        context = ssl.create_default_context()
        with contextlib.suppress(ImportError, OSError):
            import certifi

            context.load_verify_locations(certifi.where())
        for path in extra:
            with contextlib.suppress(OSError):
                if Path(path) != Path(os.path.realpath(os.environ.get("SSL_CERT_FILE", ""))) and Path(path).is_file():
                    context.load_verify_locations(path)
    if client_certificate:
        context.load_cert_chain(str(Path(client_certificate).expanduser()))
    return context


def _authorised(network: Network, url: str) -> tuple[str, dict[str, str]]:
    """The URL without credentials, and the headers for it: configured ones, those in the URL, or those of ~/.netrc."""
    import base64

    pieces = urlsplit(url)
    host = pieces.netloc.rpartition("@")[2]
    clean = urlunsplit((pieces.scheme, host, pieces.path, pieces.query, ""))
    prefixes = [prefix for prefix in network.headers if clean.startswith(prefix)]
    if prefixes:
        return clean, dict(network.headers[max(prefixes, key=len)])
    login = None
    if pieces.username:
        login = (unquote(pieces.username), unquote(pieces.password or ""))
    else:
        login = _netrc(pieces.hostname or "")
    if login is None:
        return clean, {}
    token = base64.b64encode(":".join(login).encode()).decode()
    return clean, {"authorization": f"Basic {token}"}


def _netrc(host: str) -> tuple[str, str] | None:
    import netrc

    named = os.environ.get("NETRC")
    with contextlib.suppress(OSError, RuntimeError, netrc.NetrcParseError, UnicodeDecodeError):
        files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
        for path in files:
            if path.is_file():
                entry = netrc.netrc(path).hosts.get(host)  # a "default" entry is not sent to just any host
                return (entry[0] or entry[1] or "", entry[2] or "") if entry else None
    return None


def get(network: Network, url: str, *, accept: str = "*/*", limit: int = 64 << 20) -> tuple[bytes, str, str]:
    """A small document: its bytes, its content type and its final URL.

    Raises:
        Unreachable: no answer after some attempts, an error status, or more than ``limit`` bytes.
    """
    import httpx

    reason = ""
    with connect(network, url) as client:
        clean, headers = _authorised(network, url)
        for attempt in range(3):
            if attempt:
                time.sleep(BACKOFF * 2**attempt)
            try:
                with client.stream("GET", clean, headers={**headers, "accept": accept}) as answer:
                    if answer.status_code != 200:
                        reason = f"{redact(url)} answered {answer.status_code} {answer.reason_phrase}".rstrip()
                        if answer.status_code in _RETRY_STATUS:
                            continue
                        raise Unreachable(reason)
                    body = bytearray()
                    for chunk in answer.iter_bytes():
                        body += chunk
                        if len(body) > limit:
                            raise Unreachable(f"{redact(url)} answered with more than {megabytes(limit)}")
                    return bytes(body), answer.headers.get("content-type", ""), str(answer.url)
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                reason = f"{urlsplit(clean).netloc} cannot be reached ({_clause(error)})"
    raise Unreachable(reason)


def download(network: Network, url: str, target: Path, *, size: int | None, report: Report) -> None:
    """Bring ``url`` to the file ``target``, continuing where an earlier attempt (of this or another run) ended.

    The caller holds the lock of ``target`` and checks the digest. ``size`` is the expected size in bytes, where known.

    Raises:
        Unreachable: the server does not deliver it; what came so far stays in ``target`` for the next attempt.
        SensoriumError: the disk is full or cannot be written.
    """
    import httpx

    failures = 0
    with connect(network, url) as client:
        clean, headers = _authorised(network, url)
        while True:
            before = target.stat().st_size if target.exists() else 0
            if size is not None and before >= size:
                if before == size:
                    return
                target.unlink()
                before = 0
            wait = BACKOFF * 2**failures
            try:
                if _attempt(client, clean, headers, target, before, size, report):
                    return
                reason = "the connection ended early"
            except _Refused as refusal:
                if refusal.status == 416 and before:  # what lies here is no prefix of what they have
                    target.unlink()
                    failures += 1
                    if failures < ATTEMPTS:
                        continue
                reason = f"{redact(url)} answered {refusal}"
                if refusal.status not in _RETRY_STATUS:
                    raise Unreachable(reason) from None
                wait = max(wait, min(refusal.retry_after, 60.0))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = f"{urlsplit(clean).netloc} cannot be reached ({_clause(error)})"
            after = target.stat().st_size if target.exists() else 0
            failures = 0 if after > before + (1 << 20) else failures + 1  # real progress earns new attempts
            if failures >= ATTEMPTS:
                raise Unreachable(reason)
            time.sleep(min(wait, 60.0))


class _Refused(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, phrase: str, retry_after: float) -> None:
        super().__init__(f"{status} {phrase}".rstrip())
        self.status, self.retry_after = status, retry_after


def _attempt(
    client: httpx.Client,
    url: str,
    headers: Mapping[str, str],
    target: Path,
    before: int,
    size: int | None,
    report: Report,
) -> bool:
    """One request; True when the file is complete."""
    # identity: a compressed transfer could neither be resumed nor would it have the pinned digest.
    request = {**headers, "accept-encoding": "identity"}
    if before:
        request["range"] = f"bytes={before}-"
    with client.stream("GET", url, headers=request) as answer:
        if answer.status_code not in (200, 206):
            try:
                retry_after = float(answer.headers.get("retry-after", "0"))
            except ValueError:
                retry_after = 0.0
            raise _Refused(answer.status_code, answer.reason_phrase, retry_after)
        start = before if answer.status_code == 206 and _range_start(answer) == before else 0
        if answer.status_code == 206 and start != before:
            raise _Refused(416, "an unasked range", 0.0)
        length = answer.headers.get("content-length", "")
        total = start + int(length) if length.isdigit() else None
        if size is not None and total is not None and total != size:
            raise Unreachable(f"{redact(url)} has {total} bytes, not the {size} that are pinned")
        expected = size if size is not None else total
        _check_space(target, (expected or 0) - start)
        done = start
        report(done, expected)
        with _writing(target), target.open("ab" if start else "wb") as out:
            for chunk in answer.iter_raw():
                done += len(chunk)
                if done > (expected if expected is not None else MAX_DOWNLOAD):
                    raise Unreachable(f"{redact(url)} sends more than the {expected or MAX_DOWNLOAD} bytes expected")
                out.write(chunk)
                report(done, expected)
        return expected is None or done >= expected


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # httpx wraps the errors of sockets, so this one is the disk's
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            target.unlink(missing_ok=True)  # leave a full disk no fuller than it was
        raise write_error(target, error) from error


def _range_start(answer: Any) -> int:
    """The first byte of a 206 answer from ``Content-Range: bytes 100-199/200``; -1 when it does not say."""
    text = answer.headers.get("content-range", "")
    first = text.removeprefix("bytes").strip().partition("-")[0]
    return int(first) if first.isdigit() else -1


def _check_space(target: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return
    if needed > free:
        raise SensoriumError(
            f"The disk that holds {target.parent} has {megabytes(free)} free and {megabytes(needed)} are needed; "
            "free some space there, or set SENSORIUM_HOME to a larger disk."
        )


def _clause(error: BaseException) -> str:
    """The reason in an exception as one short clause."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    return text or type(error).__name__
