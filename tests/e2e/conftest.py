"""One stack for all tests that do it no harm, and one for each test that does."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import RunningStack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory is e2e, and may take the time that a stack takes to start."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The stack of ``make up``, shared: leave it as it was."""
    running = RunningStack(tmp_path_factory.mktemp("stack"))
    yield running
    status, left = running.stop(signal.SIGTERM), running.left_behind()
    shutil.rmtree(running.scratch)
    assert status == 0, running.output.read_text()
    assert left == []


@pytest.fixture
def start_stack(tmp_path: Path) -> Iterator[Callable[..., RunningStack]]:
    """Starts a stack, with more flags of ``etcd-pd up``, that this test may break."""
    started: list[RunningStack] = []

    def start(*flags: str) -> RunningStack:
        started.append(RunningStack(tmp_path, *flags))
        return started[-1]

    yield start
    for running in started:
        running.stop()
        shutil.rmtree(running.scratch)
