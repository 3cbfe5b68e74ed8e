"""A local HTTP server that misbehaves on demand, and tiny packages, for the tests of the hub."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class File:
    """A served body and how it is served."""

    body: bytes
    type: str = "application/octet-stream"
    ranges: bool = True
    drop_after: list[int] = field(default_factory=list)  # cut the n-th answer after so many bytes
    stall_after: int | None = None  # send so many bytes, then nothing until the server stops
    delay: float = 0.0  # seconds per 64 kB
    status: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answers before the real one
    needs: str | None = None  # the Authorization header that is asked for
    redirect: str | None = None
    content_range: str | None = None
    length: bool = True


class Server:
    """Serves ``files`` by path; ``requests`` holds (path, headers) of everything that was asked."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args) -> None: ...

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    outer._answer(self)

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request, client_address) -> None: ...  # a client that was killed on purpose

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, suffix: str) -> list[dict[str, str]]:
        """The headers of every request for a path that ends so."""
        return [headers for path, headers in self.requests if path.endswith(suffix)]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((path, headers))
        file = self.files.get(path)
        if file is None:
            return self._status(handler, 404, {})
        if file.needs and headers.get("authorization") != file.needs:
            return self._status(handler, 401, {})
        if file.status:
            return self._status(handler, *file.status.pop(0))
        if file.redirect:
            return self._status(handler, 302, {"location": file.redirect})
        start, total = 0, len(file.body)
        if file.ranges and headers.get("range", "").startswith("bytes="):
            start = int(headers["range"][6:].partition("-")[0])
            if start >= total:
                return self._status(handler, 416, {"content-range": f"bytes */{total}"})
            handler.send_response(206)
            handler.send_header("content-range", file.content_range or f"bytes {start}-{total - 1}/{total}")
        else:
            handler.send_response(200)
        handler.send_header("content-type", file.type)
        if file.length:
            handler.send_header("content-length", str(total - start))
        else:
            handler.send_header("connection", "close")
        handler.end_headers()
        body = file.body[start:]
        cut = file.drop_after.pop(0) if file.drop_after else file.stall_after
        for place in range(0, len(body) if cut is None else min(cut, len(body)), 65536):
            end = place + 65536 if cut is None else min(place + 65536, cut)
            handler.wfile.write(body[place:end])
            if file.delay:
                time.sleep(file.delay)
        if cut is not None and cut < len(body):
            if file.stall_after is not None:
                self.stopping.wait(30)
            handler.close_connection = True
            handler.connection.close()
        elif not file.length:
            handler.close_connection = True
        return None

    @staticmethod
    def _status(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", "0")
        handler.end_headers()


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(name: str, version: str, files: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts too."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    return make_zip({**files, f"{info}/RECORD": record.encode()})


def make_zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data, compress_type=zipfile.ZIP_DEFLATED)
    return out.getvalue()


def make_tar(files: dict[str, bytes], links: dict[str, str] | None = None, mode: str = "gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{mode}") as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for path, target in (links or {}).items():
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


def make_deb(files: dict[str, bytes], mode: str = "xz", links: dict[str, str] | None = None) -> bytes:
    data = make_tar({f"./{path}": body for path, body in files.items()}, links, mode)
    suffix = f".{mode}" if mode else ""
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.gz", make_tar({})), (f"data.tar{suffix}", data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out
