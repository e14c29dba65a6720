"""Looking at a cell through its agent: while etcd is away, with many rooms, and at an agent that cannot show it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import etcd_pd
from etcd_pd.cli.app import cli
from etcd_pd.cli.from_agent import AgentCell, ask_agent, ask_memory
from etcd_pd.client.drain import drain, leave
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreUnavailable
from etcd_pd.store import admin
from etcd_pd.wire import messages
from etcd_pd.wire.values import RoomValue
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.raw_engine import HELLO, is_closed, packets, raw

pytestmark = pytest.mark.asyncio


class Away:
    """An etcd that does not answer, whatever it is asked."""

    def __init__(self, settings: object) -> None:
        pass

    async def __aenter__(self) -> Away:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: object) -> None:
            raise StoreUnavailable(name, "nobody listens")

        return ask


@pytest.fixture(autouse=True)
def _no_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "EtcdAdmin", Away)


async def look(world: InMemory, root: str = "/cell") -> AgentCell | None:
    return await asyncio.to_thread(ask_agent, world.settings.socket_path, root)


async def command(world: InMemory, *what: str, root: str = "/cell") -> Result:
    """A command of somebody whom etcd does not answer."""
    flags = ["--root", root, "--socket", world.settings.socket_path]
    return await asyncio.to_thread(CliRunner().invoke, cli, [*what, *flags])


async def test_an_agent_shows_every_key_when_it_is_asked(world: InMemory) -> None:
    client = await world.prefill(1)
    client.decode.announce("d", address="10.0.0.2:31001")
    await world.registered(client, 7)
    keys = {world.keys.room("p", 7), world.keys.decode("d"), world.keys.agent("agent")}
    await until(lambda: keys <= {*world.agent.view.rooms, *world.agent.roster.present}, "the agent has heard of all")
    cell = await look(world)
    assert cell is not None and cell.stale_seconds == 0
    assert (await cell.list(b"/cell/v1/")).kvs == world.store.etcd.scan(b"/cell/v1/").kvs
    assert (await cell.read([world.keys.room("p", 7), b"/cell/v1/none"])).kvs == [
        world.store.etcd.keys[world.keys.room("p", 7)]
    ]


async def test_all_of_many_rooms_are_shown_when_they_fill_many_packets(world: InMemory) -> None:
    value = RoomValue(1, 5).to_json()
    for first in range(0, 20_000, 100):
        world.store.etcd.txn([], [Put(world.keys.room("p", first + n), value, 0) for n in range(100)])
    world.store.publish()
    await until(lambda: len(world.agent.view.rooms) == 20_000, "the agent has heard of all")
    cell = await look(world)
    assert cell is not None
    assert len((await cell.list(world.keys.rooms())).kvs) == 20_000


async def test_status_and_rooms_are_the_agent_s_when_etcd_does_not_answer(world: InMemory) -> None:
    client = await world.prefill(1)
    await world.registered(client, 7)
    await until(lambda: world.agent.view.rooms, "the agent has heard of it")
    for what in (("status",), ("rooms",), ("room", "7")):
        shown = await command(world, *what)
        assert shown.exit_code == 3, shown.output
        assert "etcd does not answer; from the agent on " in shown.output and " s old" in shown.output
        found = json.loads((await command(world, *what, "--output", "json")).stdout)
        assert found["stale"]["agent"] == "agent" and found["stale"]["age_seconds"] == 0
        assert "nobody listens" in found["stale"]["error"]
    assert found["lives"][0]["room"] == "7" and found["lives"][0]["seconds_left"] is None
    status = json.loads((await command(world, "status", "--output", "json")).stdout)
    assert status["etcd"] is None and status["rooms"]["assigned"] == 1
    assert status["prefill"][0]["ranks"][0]["rooms"] == 1
    assert status["problems"][0]["text"] == "etcd does not answer"
    refused = await command(world, "rooms", "--min-age", "1")
    assert refused.exit_code == 1 and "needs etcd" in refused.output


async def test_the_view_has_an_age_when_the_agent_s_watch_broke(world: InMemory) -> None:
    back = world.store.hold("watch")
    world.store.drop_watches()
    await until(lambda: world.agent.watcher.stale_seconds > 0, "its view is stale")
    cell = await look(world)
    back.set()
    assert cell is not None and cell.stale_seconds > 0


async def test_an_agent_of_prefill_engines_says_that_it_has_no_rooms(tmp_path: Path) -> None:
    async with running(tmp_path, prefill_only=True) as world:
        client = await world.prefill(1)
        await world.registered(client, 7)
        rooms = await command(world, "rooms")
        assert rooms.exit_code == 1 and "has no rooms: it serves prefill engines alone" in rooms.output
        status = await command(world, "status")
        assert status.exit_code == 3 and "rooms: not known: this agent serves prefill engines alone" in status.output
        assert json.loads((await command(world, "status", "--output", "json")).stdout)["rooms"] is None


async def test_the_error_stands_when_the_agent_is_of_another_cell(world: InMemory) -> None:
    shown = await command(world, "rooms", root="/other")
    assert shown.exit_code == 1 and shown.output.startswith("Error: list: ")


async def test_the_error_stands_when_the_agent_does_not_know_the_question(world: InMemory) -> None:
    del world.agent._packets._handlers[messages.LOOK[0]]  # as one of an earlier release
    shown = await command(world, "rooms")
    assert shown.exit_code == 1 and shown.output.startswith("Error: list: ")


async def test_an_engine_that_looks_before_it_greets_is_put_out(world: InMemory) -> None:
    with raw(world.settings.socket_path) as sock:
        sock.send(messages.LOOK)
        await until(lambda: is_closed(sock), "it is closed")


async def test_a_page_is_empty_when_nobody_began_to_look(world: InMemory) -> None:
    with raw(world.settings.socket_path) as sock:
        sock.send(HELLO)
        sock.send(messages.LOOK_ON)
        found: list[bytes] = []

        def page() -> bool:
            found.extend(packets(sock))
            return messages.KEYS in found

        await until(page, "an empty page")


async def remembered(world: InMemory) -> dict[str, bool]:
    """Who is gone, and whether they left."""
    memory = await asyncio.to_thread(ask_memory, world.settings.socket_path, "/cell")
    assert memory is not None and memory.agent == "agent"
    return {f"{one['kind']} {one['name']}": one["left"] for one in memory.gone}


async def engines(world: InMemory) -> tuple[etcd_pd.Client, etcd_pd.Client]:
    """A prefill instance of one rank and a decode instance, which stand in etcd."""
    prefill = await world.prefill(0)
    decode = world.client()
    decode.decode.announce("d", address="10.0.0.2:31001")
    key = world.keys.decode("d")
    await until(lambda: decode.decode.poll() is not None and key in world.agent.roster.present, "it stands")
    return prefill, decode


async def all_gone(world: InMemory) -> dict[str, bool]:
    """Who is gone once both are."""
    await until(lambda: set(world.agent.roster.present) == {world.keys.agent("agent")}, "both are gone")
    return await remembered(world)


async def test_engines_that_die_are_remembered_as_gone(world: InMemory) -> None:
    for client in await engines(world):
        client.detach()
    assert await all_gone(world) == {"prefill p": False, "decode d": False}
    await engines(world)
    assert await remembered(world) == {}


async def test_engines_that_close_have_left(world: InMemory) -> None:
    for client in await engines(world):
        client.close()
    assert await all_gone(world) == {"prefill p": True, "decode d": True}


async def test_an_engine_that_closes_has_left_when_it_had_not_read_all_that_it_was_sent(world: InMemory) -> None:
    client = world.client()
    client.decode.announce("d")
    await until(lambda: world.keys.decode("d") in world.agent.roster.present, "it stands")
    client.close()  # the agent finds its goodbye and a reset
    assert await all_gone(world) == {"decode d": True}


async def test_engines_of_a_drained_node_have_left_when_they_end(world: InMemory) -> None:
    clients = await engines(world)
    await asyncio.to_thread(drain, world.settings.socket_path, 10.0)
    for client in clients:
        client.detach()
    assert await all_gone(world) == {"prefill p": True, "decode d": True}


async def test_engines_of_a_node_that_is_left_take_rooms_until_they_end_and_have_left_then(world: InMemory) -> None:
    prefill, decode = await engines(world)
    await asyncio.to_thread(leave, world.settings.socket_path, 10.0)
    await world.registered(prefill, 7)
    for client in (prefill, decode):
        client.detach()
    assert await all_gone(world) == {"prefill p": True, "decode d": True}


async def test_an_agent_s_node_has_left_when_it_is_asked_to_end(world: InMemory, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "other", world.store, agent_id="other") as other:
        await engines(other)
        key = world.keys.agent("other")
        await until(lambda: key in world.agent.roster.present, "it stands")
    world.store.etcd.expire()
    revoked = {kv.lease for kv in world.store.etcd.scan(b"/cell/").kvs if kv.key != world.keys.agent("agent")}
    for lease in revoked:  # as etcd does when nobody has renewed it
        await world.store.revoke(lease)
    assert await all_gone(world) == {"agent other": True, "prefill p": True, "decode d": True}
