"""What tests of several files use."""

from __future__ import annotations

import threading

import pytest

from sensorium.cli import run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache of its own for all tests of a file: its directory."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("home")
        patch.setenv("SENSORIUM_HOME", str(directory))
        yield directory


@pytest.fixture
def sensorium(capfd):
    """Run a command line in this process: (exit code, stdout, stderr); what native code writes is caught, too."""

    def call(*arguments):
        code = run([str(a) for a in arguments])
        for thread in threading.enumerate():  # a part may still load: what it writes must not end up in the next call
            if thread.name == "load":
                thread.join(10)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call
