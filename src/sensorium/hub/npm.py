"""``npm:`` parts: the registry that npm's settings name, else ``npm pack``. Works without npm installed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from sensorium.hub.network import Network, Unreachable, get, redact
from sensorium.hub.offers import Offer, Offers, run_tool, single_file
from sensorium.hub.parts import Part

_DEFAULT_REGISTRY = "https://registry.npmjs.org/"


def offers(part: Part, *, online: bool) -> Offers:
    """The tarball of this version, as the registry names it."""
    source = part.parsed
    values = read_npmrc()
    scope = source.name.partition("/")[0] if source.name.startswith("@") else ""
    registry = (values.get(f"{scope}:registry") if scope else "") or values.get("registry") or _DEFAULT_REGISTRY
    registry = registry.rstrip("/") + "/"
    result = Offers(network=network_of(values))
    if not online:
        return result
    # The short form of the document leaves out readmes (https://github.com/npm/registry, package-metadata.md).
    accept = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"
    try:
        body, _, _ = get(
            result.network, urljoin(registry, quote(source.name, safe="@")), accept=accept, limit=256 << 20
        )
        document = json.loads(body)
        tarball = document["versions"][source.version]["dist"]["tarball"]
        result.found.append(Offer(tarball.rpartition("/")[2], urljoin(registry, tarball)))
    except Unreachable as reason:
        result.notes.append(str(reason))
    except (ValueError, KeyError, TypeError, AttributeError):
        result.notes.append(f"the registry {redact(registry)} does not list {source.label}")
    return result


def native(part: Part, directory: Path) -> Path:
    """Let ``npm pack`` bring the tarball; it runs no script of the package when told so."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable("npm is not installed")
    source = part.parsed
    # A directory of its own as prefix: a package.json of the user's project must not be looked at.
    run_tool([npm, "pack", "--ignore-scripts", "--silent", f"{source.name}@{source.version}"], directory=directory)
    return single_file(directory)


def read_npmrc() -> dict[str, str]:
    """npm's settings: global file, user file, project file, then the environment, the strongest last."""
    values: dict[str, str] = {}
    variables = {name.lower(): value for name, value in os.environ.items()}
    paths = [Path("/etc/npmrc"), Path("/usr/etc/npmrc"), Path("/usr/local/etc/npmrc")]
    if named := variables.get("npm_config_globalconfig"):
        paths = [Path(named)]
    with contextlib.suppress(RuntimeError):
        user = variables.get("npm_config_userconfig")
        paths.append(Path(user) if user else Path.home() / ".npmrc")
    with contextlib.suppress(OSError):
        paths.append(Path.cwd() / ".npmrc")
    for path in paths:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            values.update(_parse(path.read_text(encoding="utf-8")))
    for name, value in os.environ.items():
        if name.lower().startswith("npm_config_") and value:
            # npm treats variables as lower case with dashes, except for keys with a scope or a path.
            values[name[11:].lower().replace("_", "-") if "/" not in name else name[11:]] = value
    return values


def _parse(text: str) -> dict[str, str]:
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            value = re.sub(r"\$\{([^}?]+)\??\}", lambda match: os.environ.get(match[1], ""), value.strip())
            values[key.strip()] = value.strip("\"'")
    return values


def network_of(values: dict[str, str]) -> Network:
    """Proxy, certificates and credentials from npm's settings."""
    headers: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        place, _, what = key.rpartition(":")
        if not place.startswith("//") or not value:
            continue
        authorization = ""
        if what == "_authToken":
            authorization = f"Bearer {value}"
        elif what == "_auth":
            authorization = f"Basic {value}"
        elif what == "username":
            with contextlib.suppress(ValueError):
                password = base64.b64decode(values.get(f"{place}:_password", "")).decode()
                authorization = "Basic " + base64.b64encode(f"{value}:{password}".encode()).decode()
        if authorization:
            for scheme in ("https:", "http:"):
                headers[f"{scheme}{place.rstrip('/')}/"] = {"authorization": authorization}
    registry = urlsplit(values.get("registry") or _DEFAULT_REGISTRY)
    secure = registry.scheme != "http"
    proxy = values.get("https-proxy") or values.get("proxy") if secure else values.get("proxy")
    strict = values.get("strict-ssl", "true").lower() != "false"
    return Network(
        certificates=values.get("cafile") or None,
        proxy=None if not proxy or proxy in ("null", "false") else proxy,
        insecure_hosts=frozenset() if strict else frozenset({"*"}),
        headers=headers,
    )
