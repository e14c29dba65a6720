"""The night's fuzzer by day: it survives what is known to be hostile, and it notices an agent that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_pd.core.waits import Waits
from etcd_pd.wire import messages
from tests.fuzz.attack import Attacker, as_input, as_packets

from .test_strangers import ANNOUNCE, HOSTILE, packet


@pytest.fixture
def attacker(tmp_path: Path) -> Iterator[Attacker]:
    attacker = Attacker(tmp_path)
    yield attacker
    attacker.close()


def test_an_input_stands_for_packets() -> None:
    assert list(as_packets(as_input(b"a", b"bc" * 300))) == [b"a", b"bc" * 300]
    assert list(as_packets(b"\x05\x00\x00ab")) == [b"ab"]
    assert list(as_packets(b"\x00\x00\x00\x00\x00\x00\x01")) == []


def test_an_agent_outlives_all_that_is_known(attacker: Attacker) -> None:
    for hostile in HOSTILE:
        attacker(as_input(hostile))
    attacker(
        as_input(packet(b"A", **ANNOUNCE), *[messages.encode_room(messages.REGISTER, n, n + 1) for n in range(50)])
    )


def test_a_bug_in_the_agent_is_noticed(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Waits, "want", buggy)
    with pytest.raises(AssertionError, match="did not handle"):
        attacker(as_input(messages.encode_want(messages.WantedRoom(1, 7, -1, 1.0, "p"))))
