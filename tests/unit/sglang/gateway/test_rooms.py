"""What a gateway does with answers that it has, where a room is registered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from etcd_pd import Assignment, ConfigError, PrefillLost, Registered
from etcd_pd.sglang.gateway.ranks import Ranks
from etcd_pd.sglang.gateway.rooms import ASKED_SECONDS, MOST_ASKED, Rooms
from etcd_pd.sglang.gateway.settings import GatewaySettings

pytestmark = pytest.mark.asyncio
ANSWER = Assignment("p", 7, 0, 5, 6, 0, "registry")


class Decode:
    """A client's decode side, with one answer for every room."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.forgotten: list[int] = []

    def peek(self, instance: str, room: int) -> Assignment | None:
        if isinstance(self._answer, Exception):
            raise self._answer
        return cast(Assignment | None, self._answer)

    def done(self, instance: str, room: int) -> None:
        self.forgotten.append(room)

    async def resolve(self, instance: str, room: int) -> Assignment:
        return ANSWER


class Prefill:
    """A rank that registers whatever it is asked to, at one revision."""

    def __init__(self, token: int) -> None:
        self._token = token

    async def register(self, room: int) -> Registered:
        return Registered(room, self._token, 0, 1)

    def release(self, room: int) -> None: ...


@pytest.mark.parametrize(
    ("answer", "token", "forgets"),
    [
        (None, 6, False),
        (ANSWER, ANSWER.revision, False),
        (ANSWER, ANSWER.revision + 1, True),
        (PrefillLost("p", 7, 0, 5), 6, True),
        (ConfigError("room", "was not wanted"), 6, False),
    ],
    ids=["none-yet", "its-own-came-first", "an-earlier-owner-s", "an-earlier-owner-s-end", "nobody-asked"],
)
async def test_a_registration_forgets_earlier_answers_alone(answer: Any, token: int, forgets: bool) -> None:
    """A query that waits for the room, or is about to read its answer, would miss it."""
    decode = Decode(answer)
    reader = SimpleNamespace(sync=SimpleNamespace(decode=decode), decode=decode)
    ranks = SimpleNamespace(prefill=lambda dp_rank: Prefill(token))
    rooms = Rooms(GatewaySettings(instance="p"), cast(Ranks, ranks), cast(Any, reader))
    await rooms.register(7, 0)
    assert decode.forgotten == ([7] if forgets else [])


class Asked:
    """A client's decode side that knows some rooms, and what is wanted of it."""

    def __init__(self, *there: int) -> None:
        self.there = set(there)
        self.wanted: set[int] = set()
        self.follows = 0

    def peek(self, instance: str, room: int) -> Assignment | None:
        if room not in self.wanted:
            raise ConfigError("room", "was not wanted")
        return ANSWER if room in self.there else None

    def want(self, instance: str, room: int, timeout: float) -> None:
        self.wanted.add(room)

    def done(self, instance: str, room: int) -> None:
        self.wanted.discard(room)

    async def follow(self, instance: str) -> None:
        self.follows += 1


class Queries:
    """A gateway's rooms under a clock that a test moves."""

    def __init__(self, decode: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        loop = SimpleNamespace(time=lambda: self.now)
        monkeypatch.setattr("etcd_pd.sglang.gateway.rooms.asyncio.get_running_loop", lambda: loop)
        reader = SimpleNamespace(sync=SimpleNamespace(decode=decode), decode=decode)
        self.rooms = Rooms(GatewaySettings(instance="p"), cast(Ranks, None), cast(Any, reader))


async def test_nothing_is_kept_of_a_room_that_was_only_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Asked(7)
    queries = Queries(decode, monkeypatch)
    assert await queries.rooms.query([7, 8]) == {7: 0}
    queries.now += ASKED_SECONDS
    queries.rooms.sweep()
    assert decode.wanted == {7}, "what is there is kept for as long as a query may come"
    queries.now += GatewaySettings(instance="p").bootstrap_timeout_seconds
    queries.rooms.sweep()
    assert decode.wanted == set()


async def test_a_room_that_is_asked_for_again_and_again_costs_one_want(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Asked()
    queries = Queries(decode, monkeypatch)
    for _ in range(20):
        assert await queries.rooms.query([8]) == {}
        queries.now += ASKED_SECONDS / 2
    assert decode.follows == 1 and decode.wanted == {8}
    decode.there.add(8)
    assert await queries.rooms.query([8]) == {8: 0}


async def test_so_many_rooms_are_kept_and_no_more_when_any_number_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Asked()
    queries = Queries(decode, monkeypatch)
    for first in range(0, 3 * MOST_ASKED, 100):
        await queries.rooms.query(range(first, first + 100))
    assert len(decode.wanted) == MOST_ASKED
