"""Fixtures of the chart's tests."""

from __future__ import annotations

import subprocess

import pytest

from tests.helm.chart import ROOT

BUILD_SECONDS = 1200.0


@pytest.fixture(scope="session")
def images(_docker: None) -> dict[str, str]:
    """The images of this very source: the names of `agent` and `engine`."""
    built = [line.split()[1].rstrip(",") for line in script("images")]
    agent, engine = built
    return {"agent": agent, "engine": engine}


def script(name: str, *words: str) -> list[str]:
    """The lines that one of scripts/ prints."""
    command = [str(ROOT / "scripts" / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
