"""Where hosts are: looked up once, again after failures and not in a storm, and never lost by a resolver's failure."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd.errors import StoreUnavailable
from etcd_pd.store.names import FIRST_PAUSE, LONGEST_PAUSE, Names

pytestmark = pytest.mark.asyncio


class Resolver:
    """Names under a clock of its own; ``found`` may be an error."""

    def __init__(self) -> None:
        self.now = 100.0
        self.found: list[str] | Exception = ["10.0.0.1"]
        self.times: list[float] = []

    async def resolve(self, host: str) -> list[str]:
        self.times.append(self.now)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def names(self) -> Names:
        return Names(self.resolve, lambda: self.now)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_not_looked_up(host: str) -> None:
    resolver = Resolver()
    assert await resolver.names().addresses(host) == [host]
    assert resolver.times == []


async def test_a_name_is_looked_up_once_when_nothing_fails() -> None:
    resolver = Resolver()
    names = resolver.names()
    for _ in range(100):
        assert await names.addresses("etcd") == ["10.0.0.1"]
        resolver.now += 1.0
    assert names.lookups == 1


async def test_a_new_address_is_found_within_half_a_second_when_the_old_one_fails() -> None:
    resolver = Resolver()
    names = resolver.names()
    await names.addresses("etcd")
    resolver.now += 60.0
    resolver.found = ["10.0.0.2"]
    names.doubt("etcd")
    resolver.now += FIRST_PAUSE
    assert await names.addresses("etcd") == ["10.0.0.2"]


async def test_the_old_address_stands_when_the_resolver_fails() -> None:
    resolver = Resolver()
    names = resolver.names()
    await names.addresses("etcd")
    resolver.found = OSError("no such name")
    names.doubt("etcd")
    resolver.now += 10.0
    assert await names.addresses("etcd") == ["10.0.0.1"]
    assert names.lookups == 2


async def test_the_error_names_the_host_when_it_was_never_found() -> None:
    resolver = Resolver()
    resolver.found = OSError("no such name")
    names = resolver.names()
    with pytest.raises(StoreUnavailable, match=r"cannot find etcd.*no such name"):
        await names.addresses("etcd")
    with pytest.raises(StoreUnavailable, match="the name etcd cannot be found"):
        await names.addresses("etcd")
    assert names.lookups == 1, "asked again after a pause alone"


async def test_a_look_up_ends_when_the_resolver_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_pd.store.names.LOOKUP_SECONDS", 0.01)

    async def resolve(host: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(StoreUnavailable, match="cannot find etcd"):
        await Names(resolve).addresses("etcd")


async def test_twenty_agents_look_up_seldom_and_spread_when_their_name_stays_dead() -> None:
    resolver = Resolver()
    agents = [resolver.names() for _ in range(20)]
    for names in agents:
        await names.addresses("etcd")
    failed_at = resolver.now = 200.0
    seconds = 60
    for _ in range(seconds * 20):  # each tries to connect twenty times a second, and fails
        for names in agents:
            names.doubt("etcd")
            await names.addresses("etcd")
        resolver.now += 0.05
    again = [at - failed_at for at in resolver.times[20:]]
    assert len(again) <= 20 * (4 + seconds / (LONGEST_PAUSE / 2))
    busiest = max(sum(second <= at < second + 1 for at in again) for second in range(seconds))
    assert busiest <= 2 * 20, "the first look-up and the next one"
    late = [sum(second <= at < second + 1 for at in again) for second in range(30, seconds)]
    assert max(late) <= 20, "later, not even one each"


async def test_the_pause_is_short_again_when_somebody_answered_meanwhile() -> None:
    resolver = Resolver()
    names = resolver.names()
    for _ in range(5):
        await names.addresses("etcd")
        names.doubt("etcd")
        resolver.now += LONGEST_PAUSE + FIRST_PAUSE
    names.trust("etcd")
    await names.addresses("etcd")
    before = names.lookups
    names.doubt("etcd")
    resolver.now += FIRST_PAUSE
    await names.addresses("etcd")
    assert names.lookups == before + 1
