"""Fixtures for every ring.

`etcd`, `etcd_cluster`: real etcd in containers, started once a run, in which every test has its own `root`; a test
may kill, pause or partition them, and the next test finds them healthy. `fresh_etcd`: one for this test alone.
"""

from __future__ import annotations

import signal
import socket
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.support import ports
from tests.support.etcd_server import EtcdCluster, EtcdServer, remove_leftovers
from tests.support.leaks import LeakCheck

# A run in the background of a script inherits an ignored SIGINT; what tests interrupt must not inherit it in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_mistreatable: list[EtcdServer | EtcdCluster] = []


@pytest.fixture(scope="session")
def _docker() -> None:
    remove_leftovers()


@pytest.fixture(scope="session")
def etcd(_docker: None) -> Iterator[EtcdServer]:
    """One etcd for the whole run."""
    with EtcdServer() as server:
        _mistreatable.append(server)
        yield server
        _mistreatable.remove(server)


@pytest.fixture(scope="session")
def etcd_cluster(_docker: None) -> Iterator[EtcdCluster]:
    """Three members for the whole run."""
    with EtcdCluster() as cluster:
        _mistreatable.append(cluster)
        yield cluster
        _mistreatable.remove(cluster)


@pytest.fixture
def fresh_etcd(_docker: None) -> Iterator[EtcdServer]:
    """An etcd that this test has for itself."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def root() -> str:
    """A key root that no other test uses."""
    return f"/test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never says a word, as a frozen process does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Call it for each port that you need."""
    return ports.free_port


@pytest.fixture(autouse=True)
def _healthy_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that had them, the shared servers are healthy again."""
    yield
    for name, server in (("etcd", EtcdServer), ("etcd_cluster", EtcdCluster)):
        if name in request.fixturenames:
            for shared in _mistreatable:
                if isinstance(shared, server):
                    shared.restore()


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread or a process behind."""
    check = LeakCheck(request.node.name)
    yield
    leaked = check.leaked()
    if leaked:
        pytest.fail("left behind: " + "; ".join(leaked))
