"""What the agent learns of etcd's health, and what it shows of what it could not learn."""

from __future__ import annotations

import asyncio
import logging

import pytest

from etcd_pd.agent import etcd_health
from etcd_pd.agent.etcd_health import ALARMS, EtcdHealth
from etcd_pd.agent.families import families
from etcd_pd.errors import StoreRejected, StoreUnavailable
from tests.support.agent_in_memory import InMemory, until
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.asyncio

REFUSED = StoreRejected("status", "etcdserver: permission denied")
DOWN = StoreUnavailable("status", "nobody listens")


def shown(world: InMemory) -> dict[str, float]:
    """Samples of etcd's health, by name or by alarm."""
    health = ("etcd_pd_etcd_alarms", "etcd_pd_etcd_database")
    samples = [s for family in families(world.agent) if family.name.startswith(health) for s in family.samples]
    return {sample.labels.get("alarm", sample.name): sample.value for sample in samples}


async def test_a_running_agent_shows_alarms_and_sizes(world: InMemory) -> None:
    found = await until(lambda: shown(world), "the first look")
    assert set(found) == {*ALARMS, "etcd_pd_etcd_database_bytes", "etcd_pd_etcd_database_in_use_bytes"}
    assert found["NOSPACE"] == found["CORRUPT"] == 0
    assert found["etcd_pd_etcd_database_bytes"] > found["etcd_pd_etcd_database_in_use_bytes"] > 0
    world.store.raised += [(1, "NOSPACE"), (2, "NOSPACE")]
    await world.agent.etcd_health.look()
    assert shown(world)["NOSPACE"] == 2 and shown(world)["CORRUPT"] == 0


async def test_what_etcd_did_not_say_is_not_shown(world: InMemory) -> None:
    await until(lambda: shown(world), "the first look")
    world.store.fail("status", DOWN)
    await world.agent.etcd_health.look()
    assert shown(world) == {}
    await world.agent.etcd_health.look()
    assert shown(world)


async def test_nothing_is_asked_before_etcd_was_reached() -> None:
    store, reached = MemoryStore(), asyncio.Event()
    health = EtcdHealth(store)
    running = asyncio.create_task(health.run(reached))
    await asyncio.sleep(0)
    assert store.calls == []
    reached.set()
    await until(lambda: health.status, "the first look")
    assert store.calls == ["status"]
    running.cancel()


async def test_where_the_status_is_for_root_alone_the_alarms_are_asked_for() -> None:
    store = MemoryStore()
    store.raised.append((1, "CORRUPT"))
    store.fail("status", REFUSED)
    health = EtcdHealth(store)
    await health.look()
    assert health.status is None and health.alarms == {"CORRUPT": 1}


async def test_where_neither_may_be_asked_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = MemoryStore()
    health = EtcdHealth(store)
    for _ in range(3):
        store.fail("status", REFUSED)
        store.fail("alarms", REFUSED)
        await health.look()
        assert health.status is None and health.alarms is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "permission denied" in caplog.text


async def test_an_alarm_is_logged_when_it_is_raised_and_not_again(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    health = EtcdHealth(store)
    await health.look()
    store.raised.append((1, "NOSPACE"))
    for _ in range(3):
        await health.look()
    assert [record.getMessage() for record in caplog.records if "NOSPACE" in record.getMessage()] == [
        "etcd raised its alarm NOSPACE: see EtcdPdAlarm in the runbook"
    ]


@pytest.mark.parametrize(
    ("version", "authenticates", "warned"),
    [
        *(("3.4.42", True, 1), ("3.5.32", True, 1), ("3.5.32", False, 0), ("3.5.33", True, 0)),
        *(("3.6.13", True, 1), ("3.6.14", True, 0), ("3.7.0", True, 1), ("3.7.1", True, 0), ("3.8.0", True, 0)),
        ("3.7.0-rc.1", True, 1),
    ],
)
async def test_an_etcd_whose_roles_do_not_hold_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, version: str, authenticates: bool, warned: int
) -> None:
    store = MemoryStore()
    store.version, store.authenticates = version, authenticates
    health = EtcdHealth(store)
    for _ in range(3):
        await health.look()
    assert caplog.text.count("upgrade etcd to 3.5.33, 3.6.14, 3.7.1 or newer") == warned


async def test_where_nobody_answers_it_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.version, store.authenticates = "3.5.16", True
    store.fail("auth_enabled", DOWN)
    health = EtcdHealth(store)
    await health.look()
    assert "upgrade" not in caplog.text
    await health.look()
    assert "upgrade" in caplog.text


async def test_who_may_not_ask_whether_roles_hold_is_under_them(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.version = "3.5.16"
    store.fail("auth_enabled", REFUSED)
    await EtcdHealth(store).look()
    assert "3.5.16 can be passed by" in caplog.text


async def test_it_is_asked_again_soon_when_it_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_health, "RETRY_SECONDS", 0.01)
    store, reached = MemoryStore(), asyncio.Event()
    reached.set()
    for _ in range(3):
        store.fail("status", DOWN)
    health = EtcdHealth(store)
    running = asyncio.create_task(health.run(reached))
    await until(lambda: health.status, "an answer, long before the next regular look")
    assert store.calls.count("status") == 4
    running.cancel()
