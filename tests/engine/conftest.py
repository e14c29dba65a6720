"""Fixtures of SGLang's own engine: one fleet for the whole run, which every test leaves as it found it."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.leaks import LeakCheck

from .fleet import Fleet
from .processes import fresh

#: Where servers log: kept until the next run.
LOGS = Path("build") / "sglang" / "logs"
_SIOCSIFFLAGS, _IFF_UP_AND_RUNNING = 0x8914, 0x41


@pytest.fixture(scope="session")
def _loopback_only() -> None:
    interfaces = [name for _, name in socket.if_nameindex()]
    if interfaces != ["lo"]:
        pytest.fail(f"these tests run where there is only loopback, not {interfaces}: make test-sglang")
    raise_loopback()


def raise_loopback() -> None:
    """A new namespace's loopback is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_AND_RUNNING))


@pytest.fixture(scope="session")
def fleet(_loopback_only: None) -> Iterator[Fleet]:
    """The engines, running."""
    check = LeakCheck("the fleet", grace=20.0)
    with ExitStack() as stack:
        made = Fleet(fresh(LOGS), stack)
        made.start()
        yield made
    leaked = check.leaked()
    assert not leaked, "left behind: " + "; ".join(leaked)


@pytest.fixture(autouse=True)
def _no_leaks() -> None:
    """What a test starts again belongs to the fleet, which is looked at when all of it has ended."""
