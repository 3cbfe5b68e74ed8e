"""Downloads over a network that fails in every way."""

from __future__ import annotations

import pytest

from hub_server import File, noise
from sensorium.hub import network
from sensorium.hub.network import Network, Unreachable, download, get

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("hub_home")


def bring(server, tmp_path, size: int | None = None, path: str = "/f", limits: Network | None = None) -> bytes:
    target = tmp_path / "target"
    download(limits or Network(timeout=2), f"{server.url}{path}", target, size=size, report=lambda done, total: None)
    return target.read_bytes()


BODY = noise(200_000)


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [None, len(BODY)])
def test_downloads(server, tmp_path, length, size):
    server.files["/f"] = File(BODY, length=length)
    assert bring(server, tmp_path, size) == BODY


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.files["/f"] = File(BODY, ranges=False, drop_after=[100_000])
    assert bring(server, tmp_path) == BODY
    assert server.asked("/f")[1]["range"].startswith("bytes=")


@pytest.mark.parametrize("answer", ["bytes 0-9/10", "", "bytes */200000", "nonsense"])
def test_a_server_that_answers_another_range_starts_over(server, tmp_path, answer):
    server.files["/f"] = File(BODY, drop_after=[100_000], content_range=answer or " ")
    assert bring(server, tmp_path) == BODY


def test_a_partial_file_that_is_too_long_starts_over(server, tmp_path):
    server.files["/f"] = File(BODY)
    (tmp_path / "target").write_bytes(bytes(300_000))
    assert bring(server, tmp_path) == BODY
    (tmp_path / "target").write_bytes(bytes(300_000))
    assert bring(server, tmp_path, len(BODY)) == BODY


def test_busy_servers_are_asked_again(server, tmp_path):
    server.files["/f"] = File(BODY, status=[(503, {"retry-after": "0"}), (429, {"retry-after": "soon"}), (500, {})])
    assert bring(server, tmp_path) == BODY
    server.files["/g"] = File(BODY, status=[(502, {}), (503, {})])
    assert get(Network(), f"{server.url}/g")[0] == BODY


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_refusals_are_not_repeated(server, tmp_path, status):
    server.files["/f"] = File(BODY, status=[(status, {})])
    with pytest.raises(Unreachable, match=str(status)):
        bring(server, tmp_path)
    assert len(server.requests) == 1


def test_a_server_that_never_delivers_is_given_up(server, tmp_path):
    server.files["/f"] = File(BODY, drop_after=[0] * 50)
    with pytest.raises(Unreachable, match="cannot be reached"):
        bring(server, tmp_path)
    assert len(server.requests) == network.ATTEMPTS


def test_a_server_that_stalls_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "ATTEMPTS", 2)
    server.files["/f"] = File(BODY, stall_after=1000)
    with pytest.raises(Unreachable, match="cannot be reached"):
        bring(server, tmp_path, limits=Network(timeout=0.2))


def test_what_has_another_size_is_not_downloaded(server, tmp_path):
    server.files["/f"] = File(BODY)
    with pytest.raises(Unreachable, match="has 200000 bytes, not the 100"):
        bring(server, tmp_path, 100)
    server.files["/g"] = File(BODY, length=False)
    with pytest.raises(Unreachable, match="sends more than the 100 bytes"):
        bring(server, tmp_path, 100, "/g")


def test_an_endless_page_is_cut(server):
    server.files["/f"] = File(BODY)
    with pytest.raises(Unreachable, match=r"more than 1\.0 kB"):
        get(Network(), f"{server.url}/f", limit=1000)


def test_redirects_end(server):
    server.files["/f"] = File(b"", redirect="/f")
    with pytest.raises(Unreachable):
        get(Network(), f"{server.url}/f")


@pytest.mark.parametrize(
    "settings",
    [
        {"certificates": "/none.pem"},
        {"client_certificate": "/none.pem"},
        {"proxy": "gopher://x"},
        {"proxy": "http://[::"},
    ],
)
def test_settings_that_cannot_be_used(server, settings):
    with pytest.raises(Unreachable, match="settings cannot be used"):
        get(Network(**settings), f"{server.url}/f")


def test_a_proxy_is_used(server):
    server.files["/f"] = File(b"through")
    assert get(Network(proxy=server.url), "http://registry.invalid/f")[0] == b"through"


@pytest.mark.parametrize("url", ["http://[::1", "http://", "https://a b/", "nonsense"])
def test_malformed_addresses(url):
    with pytest.raises(Unreachable):
        get(Network(), url)
