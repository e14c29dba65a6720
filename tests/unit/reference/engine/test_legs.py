"""Both legs of a request learn how the other one ended: over a real connection, without ranks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from etcd_pd.reference.engine import decode_legs, legs
from etcd_pd.reference.engine.decode_legs import DecodeLegs
from etcd_pd.reference.engine.errors import RequestFailed
from etcd_pd.reference.engine.legs import Leg
from etcd_pd.reference.engine.prefill_legs import PrefillLegs
from tests.support.ports import free_port

pytestmark = pytest.mark.asyncio
A, B = Leg(2**63 - 1, "a"), Leg(2, "b")
LOST = RequestFailed(500, "RankDied", "the process of dp_rank 1 ended", dp_rank=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legs, "HEARTBEAT_SECONDS", 0.3)
    monkeypatch.setattr(legs, "GRACE_SECONDS", 0.4)
    monkeypatch.setattr(decode_legs, "RETRY_SECONDS", 0.02)


class Pair:
    """Two fronts, and the failures that each was given."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.told: dict[str, dict[Leg, RequestFailed]] = {"prefill": {}, "decode": {}}
        self.decode = DecodeLegs(self.told["decode"].__setitem__)
        self._runner: web.AppRunner | None = None

    async def start_prefill(self) -> None:
        self.prefill = PrefillLegs(self.told["prefill"].__setitem__, arrival_seconds=0.5)
        application = web.Application()
        await self.prefill.start(application)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop_prefill(self) -> None:
        assert self._runner
        await self.prefill.stop()
        await self._runner.cleanup()

    async def linked(self, leg: Leg) -> None:
        """Return when prefill knows who waits for a leg."""
        await until(lambda: self.prefill._live.get(leg) is not None)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    both = Pair()
    await both.start_prefill()
    await both.decode.start()
    both.decode.meet(both.address)
    yield both
    await both.decode.stop()
    await both.stop_prefill()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_decode_is_notified_when_prefill_s_leg_fails_and_no_other_leg_ends() -> None:
    async with pair() as both:
        for leg in (A, B):
            both.prefill.begin(leg, "")
            both.decode.begin(leg, both.address)
        await both.linked(A)
        both.prefill.end(A, LOST)
        await until(lambda: both.told["decode"])
        failure = both.told["decode"].pop(A)
        assert (failure.status, failure.type) == (500, "PrefillFailed")
        assert failure.to_json()["error"] == {
            "type": "PrefillFailed",
            "dp_rank": 1,
            "leg": "prefill",
            "cause": "RankDied",
            "message": "its prefill leg ended: the process of dp_rank 1 ended",
        }
        assert both.told == {"prefill": {}, "decode": {}}


async def test_prefill_is_notified_when_decode_s_leg_fails() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        both.decode.end(A, RequestFailed(499, "Aborted", "the client has gone"))
        await until(lambda: both.told["prefill"])
        failure = both.told["prefill"][A]
        assert (failure.status, failure.type, failure.details["cause"]) == (502, "DecodeFailed", "Aborted")


async def test_no_notification_is_sent_when_legs_end_well() -> None:
    async with pair() as both:
        for leg in (A, B):
            both.prefill.begin(leg, "")
            both.decode.begin(leg, both.address)
        await both.linked(B)
        both.prefill.end(A, None)
        both.decode.end(A, None)
        both.prefill.end(B, LOST)  # comes after whatever was said of A
        await until(lambda: both.told["decode"])
        assert set(both.told["decode"]) == {B} and both.told["prefill"] == {}


async def test_the_failure_waits_when_the_other_leg_comes_later() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.prefill.end(A, LOST)
        both.decode.begin(A, both.address)
        await until(lambda: A in both.told["decode"])
        both.decode.begin(B, both.address)
        both.decode.end(B, LOST)
        await until(lambda: B in both.prefill._early)
        with pytest.raises(RequestFailed, match="its decode leg ended"):
            both.prefill.begin(B, "")


async def test_a_failure_does_not_come_back_when_the_other_leg_caused_it() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        await both.linked(A)
        both.prefill.end(A, LOST)
        await until(lambda: both.told["decode"])
        both.decode.end(A, both.told["decode"][A])  # as a front ends what it was told to end
        both.decode.begin(B, both.address)
        both.decode.end(B, LOST)
        await until(lambda: B in both.prefill._early)
        assert A not in both.prefill._early


async def test_a_second_request_ends_nothing_when_it_has_the_room_of_a_first() -> None:
    async with pair() as both:
        assert both.prefill.begin(A, "") and not both.prefill.begin(A, "")
        assert both.decode.begin(A, both.address) and not both.decode.begin(A, both.address)


async def test_waiting_legs_end_when_prefill_is_gone_and_later_ones_too_until_it_is_back() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        await both.linked(A)
        await both.stop_prefill()
        await until(lambda: A in both.told["decode"])
        assert both.told["decode"].pop(A).type == "PrefillUnreachable"
        both.decode.begin(B, both.address)
        await until(lambda: B in both.told["decode"])
        await both.start_prefill()
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        await both.linked(A)


async def test_no_leg_ends_when_the_connection_comes_back_at_once() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        await both.linked(A)
        first = both.prefill._live[A]
        assert first is not None
        await first.close()
        await until(lambda: both.prefill._live[A] not in (None, first))
        await asyncio.sleep(2 * legs.GRACE_SECONDS)
        assert both.told == {"prefill": {}, "decode": {}}


async def test_prefill_s_legs_end_when_their_decode_is_gone() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        await both.linked(A)
        await both.decode.stop()
        await until(lambda: both.told["prefill"])
        assert both.told["prefill"][A].type == "DecodeLost"


async def test_a_leg_ends_when_the_other_one_never_comes() -> None:
    async with pair() as both:
        both.prefill.begin(A, "")
        both.decode.begin(B, both.address)
        await until(lambda: both.told["prefill"] and both.told["decode"])
        assert both.told["prefill"][A].type == "DecodeMissing"
        assert both.told["decode"][B].details["cause"] == "PrefillMissing"


async def test_nobody_is_connected_to_when_the_registry_does_not_know_the_address() -> None:
    """A request may name any host and port."""
    both = Pair()
    await both.start_prefill()
    await both.decode.start()
    both.decode.begin(A, both.address)
    both.decode.end(A, LOST)
    both.decode.begin(B, both.address)
    await asyncio.sleep(0.2)
    assert not both.prefill._decodes
    both.decode.meet(both.address)
    both.prefill.begin(B, "")
    await both.linked(B)
    await both.decode.stop()
    await both.stop_prefill()


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff", b'{"type":"await","legs":[["x"]]}', b'{"type":"what"}', b"[" * 60_000]
)
async def test_nonsense_ends_its_own_connection_alone(garbage: bytes) -> None:
    async with pair() as both, aiohttp.ClientSession() as session:
        both.prefill.begin(A, "")
        both.decode.begin(A, both.address)
        await both.linked(A)
        async with session.ws_connect(f"http://{both.address}{legs.PATH}") as stranger:
            await stranger.send_bytes(garbage)
            assert (await stranger.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        both.prefill.end(A, LOST)
        await until(lambda: both.told["decode"])


async def test_a_failure_is_typed_when_what_the_other_side_says_of_it_is_hostile() -> None:
    details = {"status": 200, "type": "x", "message": "y", "self": 1, "room": 7}
    for status in (-1, 200, 99999):
        failure = legs.Ended(A, status, "Odd", "why", details).failure("decode")
        assert (failure.status, failure.type) == (502, "DecodeFailed")
        assert failure.details == {"room": 7, "leg": "decode", "cause": "Odd"}
