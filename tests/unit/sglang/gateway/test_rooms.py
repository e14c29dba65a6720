"""What a gateway does with answers that it has, where a room is registered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from etcd_pd import Assignment, ConfigError, PrefillLost, Registered
from etcd_pd.sglang.gateway.ranks import Ranks
from etcd_pd.sglang.gateway.rooms import Rooms
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
