"""A cache of its own and no settings of this machine's pip, npm, apt or proxies: import ``hub_home`` to use it."""

from __future__ import annotations

import os

import pytest

from hub_server import Server
from sensorium.hub import network


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith(("PIP_", "UV_", "NPM_", "HF_", "SENSORIUM_", "XDG_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NPM_CONFIG_GLOBALCONFIG", os.devnull)
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(network, "BACKOFF", 0.01)
    return tmp_path / "home"


@pytest.fixture
def server():
    with Server() as running:
        yield running
