"""A client and a fake agent at the other end of its socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd.client import connection
from tests.support.fake_agent import FakeAgent, FakeEngineSocket


@pytest.fixture(autouse=True)
def _no_pause_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECONNECT_SECONDS", 0.0)


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@pytest.fixture
def agent(socket_path: str) -> Iterator[FakeAgent]:
    agent = FakeAgent(socket_path)
    yield agent
    agent.stop()


@pytest.fixture
def client(socket_path: str) -> Iterator[etcd_pd.Client]:
    with etcd_pd.connect(socket_path) as client:
        yield client


@pytest.fixture
def engine(agent: FakeAgent, client: etcd_pd.Client) -> FakeEngineSocket:
    """The agent's end of the client's connection, which it has greeted and which is synced at revision 100."""
    client.fileno()
    engine = agent.accept()
    assert engine.kinds() == b"H"
    engine.welcome()
    engine.view(100, last_want=0)
    client.decode.poll()
    return engine
