"""What the agent relies on in a store: the same cases for etcd and for the in-memory one of the unit tests."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import pytest_asyncio

from etcd_pd.config import EtcdSettings
from etcd_pd.core.records import (
    MAX_TXN_OPS,
    Compare,
    Delete,
    Event,
    KeyValue,
    LeaseTimes,
    OnLease,
    Operation,
    Put,
    WatchResponse,
)
from etcd_pd.errors import LeaseNotFound, StoreError, StoreRejected, StoreTimeout, StoreUnavailable
from etcd_pd.store import etcd as etcd_store
from etcd_pd.store.base import Store, Watch
from etcd_pd.store.etcd import EtcdStore
from tests.support.etcd_server import EtcdServer
from tests.support.memory_etcd import MemoryEtcd
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.asyncio

#: How long an answer may take before the test gives up, seconds.
PATIENCE = 10.0


class Subject:
    """A store under test, a prefix of its own, and what only a server's owner can do."""

    def __init__(
        self,
        store: Store,
        root: str,
        compact: Callable[[], object],
        expire: Callable[[int], Awaitable[None]],
        alarm: Callable[[str, bool], None],
    ) -> None:
        self.store, self.root = store, root
        self.compact, self.expire, self.alarm = compact, expire, alarm

    def key(self, name: str) -> bytes:
        return f"{self.root}/{name}".encode()

    @property
    def prefix(self) -> bytes:
        return f"{self.root}/".encode()

    async def put(self, name: str, value: bytes = b"v", lease: int = 0) -> int:
        """The revision of the write."""
        return (await self.store.txn([], [Put(self.key(name), value, lease)])).header.revision

    async def get(self, name: str) -> KeyValue | None:
        kvs = (await self.store.read([self.key(name)])).kvs
        return kvs[0] if kvs else None

    async def names(self) -> list[str]:
        return [kv.key.decode().removeprefix(f"{self.root}/") for kv in (await self.store.list(self.prefix)).kvs]


@pytest_asyncio.fixture(
    params=["memory", pytest.param("etcd", marks=[pytest.mark.integration, pytest.mark.every_etcd])]
)
async def subject(request: pytest.FixtureRequest, root: str) -> AsyncIterator[Subject]:
    if request.param == "memory":
        now = [0.0]
        etcd = MemoryEtcd(lambda: now[0])
        store = MemoryStore(etcd)

        async def jump(lease_id: int) -> None:
            now[0] += 3600

        def turn(name: str, active: bool) -> None:
            (store.raised.append if active else store.raised.remove)((1, name))

        yield Subject(store, root, etcd.compact, jump, turn)
        await store.close()
        return
    server: EtcdServer = request.getfixturevalue("etcd")
    async with EtcdStore(EtcdSettings(endpoints=(server.endpoint,))) as real:

        async def wait(lease_id: int) -> None:
            while server.ctl.lease(lease_id).ttl != -1:
                await asyncio.sleep(0.1)

        def alarm(name: str, active: bool) -> None:
            server.ctl.alarm(name, active=active)

        yield Subject(real, root, server.ctl.compact, wait, alarm)


class Reader:
    """Reads a watch one response at a time."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._responses = watch.__aiter__()

    async def response(self) -> WatchResponse:
        return await asyncio.wait_for(self._responses.__anext__(), PATIENCE)

    async def events(self, count: int) -> list[Event]:
        """That many events, whole revisions only."""
        events: list[Event] = []
        torn = False
        while len(events) < count or torn:
            response = await self.response()
            events += response.events
            torn = response.fragment
        return events


async def watching(subject: Subject, start_revision: int) -> Reader:
    """A watch that stands."""
    reader = Reader(await subject.store.watch(subject.prefix, start_revision))
    created = await reader.response()
    assert created.created and not created.events
    return reader


class TestTxn:
    async def test_a_write_gives_the_revision_that_made_it(self, subject: Subject) -> None:
        revision = await subject.put("k", b"1")
        assert await subject.get("k") == KeyValue(subject.key("k"), b"1", revision, revision, 0)
        later = await subject.put("k", b"2")
        assert later > revision
        assert await subject.get("k") == KeyValue(subject.key("k"), b"2", revision, later, 0)

    async def test_create_revision_starts_anew_after_a_deletion(self, subject: Subject) -> None:
        first = await subject.put("k")
        await subject.store.txn([], [Delete(subject.key("k"))])
        second = await subject.put("k")
        found = await subject.get("k")
        assert found is not None and found.create_revision == second > first

    @pytest.mark.parametrize("exists", [True, False])
    async def test_zero_means_that_the_key_does_not_exist(self, subject: Subject, exists: bool) -> None:
        if exists:
            await subject.put("k", b"theirs")
        result = await subject.store.txn([Compare(subject.key("k"), 0)], [Put(subject.key("k"), b"ours", 0)])
        assert result.succeeded is not exists
        found = await subject.get("k")
        assert found is not None and found.value == (b"theirs" if exists else b"ours")

    async def test_a_prefix_is_asked_of_every_key_under_it(self, subject: Subject) -> None:
        first, second = await subject.put("a/1"), await subject.put("a/2")
        holds = []
        for key, revision in (("a/", 0), ("a/", first), ("a/1", first), ("a/2", second), ("b/", 0), ("b/", first)):
            result = await subject.store.txn([Compare(subject.key(key), revision, prefix=True)], [])
            holds.append(result.succeeded)
        assert holds == [False, False, True, True, True, False]

    @pytest.mark.parametrize("off_by", [-1, 0, 1])
    async def test_a_token_compares_exactly(self, subject: Subject, off_by: int) -> None:
        token = await subject.put("k")
        await subject.put("k", b"overwritten")
        result = await subject.store.txn([Compare(subject.key("k"), token + off_by)], [Delete(subject.key("k"))])
        assert result.succeeded is (off_by == 0)
        assert (await subject.get("k") is None) is (off_by == 0)

    async def test_a_lease_compares_exactly_and_a_key_that_is_not_there_has_none(self, subject: Subject) -> None:
        ours, theirs = [(await subject.store.grant(60)).lease_id for _ in range(2)]
        await subject.put("k", lease=ours)
        await subject.put("bare")
        holds = []
        for key, lease in (
            ("k", ours),
            ("k", theirs),
            ("k", 0),
            ("bare", 0),
            ("bare", ours),
            ("none", 0),
            ("none", ours),
        ):
            holds.append((await subject.store.txn([OnLease(subject.key(key), lease)], [])).succeeded)
        assert holds == [True, False, False, True, False, True, False]

    async def test_one_compare_that_fails_prevents_everything(self, subject: Subject) -> None:
        token = await subject.put("guard")
        before = await subject.put("k", b"before")
        result = await subject.store.txn(
            [Compare(subject.key("guard"), token), Compare(subject.key("k"), 0)],
            [Put(subject.key("k"), b"after", 0), Put(subject.key("other"), b"", 0)],
        )
        assert not result.succeeded
        assert result.header.revision == before, "nothing happened, so no new revision"
        assert await subject.names() == ["guard", "k"]

    async def test_all_operations_share_one_revision(self, subject: Subject) -> None:
        await subject.put("old")
        operations: list[Operation] = [Put(subject.key("a"), b"", 0), Put(subject.key("b"), b"", 0)]
        result = await subject.store.txn([], [*operations, Delete(subject.key("old"))])
        kvs = (await subject.store.list(subject.prefix)).kvs
        assert [(kv.key, kv.mod_revision) for kv in kvs] == [(op.key, result.header.revision) for op in operations]

    async def test_deleting_what_is_not_there_makes_no_revision(self, subject: Subject) -> None:
        before = await subject.put("k")
        result = await subject.store.txn([], [Delete(subject.key("nothing"))])
        assert (result.succeeded, result.header.revision) == (True, before)

    async def test_nothing_to_do_is_no_error(self, subject: Subject) -> None:
        assert (await subject.store.txn([], [])).succeeded

    @pytest.mark.parametrize("second", ["put", "delete"])
    async def test_writing_a_key_twice_is_refused(self, subject: Subject, second: str) -> None:
        key = subject.key("k")
        twice: Sequence[Operation] = [Put(key, b"1", 0), Put(key, b"2", 0) if second == "put" else Delete(key)]
        with pytest.raises(StoreRejected, match="duplicate key"):
            await subject.store.txn([], twice)
        assert await subject.get("k") is None

    async def test_as_many_operations_as_allowed_and_no_more(self, subject: Subject) -> None:
        puts = [Put(subject.key(f"{n:04}"), b"", 0) for n in range(MAX_TXN_OPS + 1)]
        compares = [Compare(put.key, 0) for put in puts]
        with pytest.raises(StoreRejected, match="too many operations"):
            await subject.store.txn([], puts)
        with pytest.raises(StoreRejected, match="too many operations"):
            await subject.store.txn(compares, [])
        assert (await subject.store.txn(compares[:-1], puts[:-1])).succeeded
        assert len(await subject.names()) == MAX_TXN_OPS

    async def test_an_empty_key_is_refused(self, subject: Subject) -> None:
        with pytest.raises(StoreRejected):
            await subject.store.txn([], [Put(b"", b"v", 0)])


class TestRead:
    async def test_it_gives_those_that_exist_at_one_revision(self, subject: Subject) -> None:
        await subject.put("a", b"1")
        revision = await subject.put("c", b"3")
        listing = await subject.store.read([subject.key(name) for name in ("a", "b", "c")])
        assert [kv.value for kv in listing.kvs] == [b"1", b"3"]
        assert listing.header.revision >= revision

    async def test_it_takes_as_many_keys_as_a_transaction_compares(self, subject: Subject) -> None:
        await subject.put("0127")
        listing = await subject.store.read([subject.key(f"{n:04}") for n in range(MAX_TXN_OPS)])
        assert len(listing.kvs) == 1

    async def test_a_list_is_in_order_and_holds_nothing_else(self, subject: Subject) -> None:
        for name in ("b", "a/2", "a/1", "a0", "a"):
            await subject.put(name)
        listing = await subject.store.list(subject.key("a/"))
        assert [kv.key for kv in listing.kvs] == [subject.key("a/1"), subject.key("a/2")]
        assert (await subject.store.list(subject.key("nothing/"))).kvs == []

    async def test_a_list_and_a_watch_may_end_before_a_key(self, subject: Subject) -> None:
        start = await subject.put("a")
        for name in ("b", "c/1", "c", "c/2", "b0"):
            await subject.put(name)
        end = subject.key("c")
        listing = await subject.store.list(subject.prefix, end)
        reader = Reader(await subject.store.watch(subject.prefix, start, end))
        names = [b"a", b"b", b"b0"]
        assert [kv.key for kv in listing.kvs] == [subject.prefix + name for name in names]
        assert sorted(event.key for event in await reader.events(3)) == [subject.prefix + name for name in names]

    @pytest.mark.parametrize("page", [1, 3, 7, 100])
    async def test_pages_of_a_list_are_of_one_revision(
        self, subject: Subject, page: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etcd_store, "PAGE_KEYS", page)
        names = [f"{n:02}" for n in range(20)]
        for name in names:
            await subject.put(name)
        past: dict[int, dict[str, bytes]] = {}
        content: dict[str, bytes] = {name: b"v" for name in names}

        async def write() -> None:
            for n in itertools.count():
                name = names[n % len(names)]
                if content.pop(name, None) is None:
                    content[name] = b"%d" % n
                    revision = await subject.put(name, content[name])
                else:
                    revision = (await subject.store.txn([], [Delete(subject.key(name))])).header.revision
                past[revision] = dict(content)

        writer = asyncio.create_task(write())
        listings = []
        while len(past) < 5:
            await asyncio.sleep(0)
        for _ in range(5):
            listings.append(await subject.store.list(subject.prefix))
        last = len(past)
        while len(past) < last + 2:
            await asyncio.sleep(0)
        writer.cancel()
        for listing in listings:
            found = {kv.key.decode().rpartition("/")[2]: kv.value for kv in listing.kvs}
            assert found == past[max(revision for revision in past if revision <= listing.header.revision)]


class TestLeases:
    async def test_the_granted_ttl_is_returned_when_it_differs_from_what_was_asked(self, subject: Subject) -> None:
        short, long = await subject.store.grant(1), await subject.store.grant(60)
        assert short.ttl >= 2, "etcd grants no shorter one"
        assert long.ttl == 60
        assert short.lease_id and short.lease_id != long.lease_id
        assert 55 <= (await subject.store.lease_times(long.lease_id)).left <= 60

    async def test_too_long_a_lease_is_refused(self, subject: Subject) -> None:
        with pytest.raises(StoreRejected):
            await subject.store.grant(10**10)

    async def test_a_keepalive_gives_the_whole_time_again(self, subject: Subject) -> None:
        lease = (await subject.store.grant(60)).lease_id
        for _ in range(3):
            assert await subject.store.keep_alive(lease) == 60

    async def test_a_key_goes_with_its_lease(self, subject: Subject) -> None:
        lease = (await subject.store.grant(60)).lease_id
        await subject.put("leased", lease=lease)
        await subject.put("free")
        await subject.store.revoke(lease)
        assert await subject.names() == ["free"]
        assert await subject.store.keep_alive(lease) == 0
        assert await subject.store.lease_times(lease) == LeaseTimes(0, 0)

    async def test_it_goes_when_the_lease_expires(self, subject: Subject) -> None:
        lease = (await subject.store.grant(2)).lease_id
        await subject.put("leased", lease=lease)
        await subject.expire(lease)
        assert await subject.names() == []
        assert await subject.store.keep_alive(lease) == 0

    async def test_a_key_written_again_hangs_on_its_last_lease_alone(self, subject: Subject) -> None:
        first, second = [(await subject.store.grant(60)).lease_id for _ in range(2)]
        created = await subject.put("k", lease=first)
        await subject.put("k", lease=second)
        await subject.store.revoke(first)
        found = await subject.get("k")
        assert found is not None and (found.lease, found.create_revision) == (second, created)
        await subject.put("k")
        await subject.store.revoke(second)
        assert await subject.names() == ["k"]

    async def test_a_key_written_again_may_keep_the_lease_that_it_hangs_on(self, subject: Subject) -> None:
        lease = (await subject.store.grant(60)).lease_id
        await subject.put("k", lease=lease)
        await subject.store.txn([], [Put(subject.key("k"), b"again", None)])
        found = await subject.get("k")
        assert found is not None and (found.value, found.lease) == (b"again", lease)
        await subject.store.revoke(lease)
        with pytest.raises(StoreRejected, match="key not found"):
            await subject.store.txn([], [Put(subject.key("k"), b"", None)])

    async def test_writing_under_a_lease_that_is_gone_is_refused(self, subject: Subject) -> None:
        lease = (await subject.store.grant(60)).lease_id
        await subject.store.revoke(lease)
        with pytest.raises(LeaseNotFound):
            await subject.store.txn([], [Put(subject.key("k"), b"", lease), Put(subject.key("j"), b"", 0)])
        assert await subject.names() == [], "not even in part"

    async def test_but_not_where_the_compares_fail_anyway(self, subject: Subject) -> None:
        await subject.put("k")
        result = await subject.store.txn([Compare(subject.key("k"), 0)], [Put(subject.key("k"), b"", 12345)])
        assert not result.succeeded

    async def test_unknown_leases_are_no_error_to_ask_for_or_to_end(self, subject: Subject) -> None:
        assert await subject.store.keep_alive(12345) == 0
        assert await subject.store.lease_times(12345) == LeaseTimes(0, 0)
        await subject.store.revoke(12345)


class TestWatch:
    async def test_events_from_its_start_revision_on_arrive_when_keys_change(self, subject: Subject) -> None:
        await subject.put("before")
        start = await subject.put("k", b"1") + 1
        reader = await watching(subject, start)
        await subject.put("k", b"2")
        await subject.store.txn([], [Delete(subject.key("k"))])
        first, second = await reader.events(2)
        assert first.kv is not None and (first.key, first.kv.value) == (subject.key("k"), b"2")
        assert first.mod_revision == first.kv.mod_revision == start
        assert (second.key, second.kv, second.mod_revision) == (subject.key("k"), None, start + 1)
        await reader.watch.close()

    async def test_earlier_events_arrive_when_the_watch_starts_at_their_revision(self, subject: Subject) -> None:
        start = await subject.put("a")
        await subject.put("b")
        reader = await watching(subject, start)
        assert [event.key for event in await reader.events(2)] == [subject.key("a"), subject.key("b")]
        await reader.watch.close()

    async def test_no_event_arrives_when_another_prefix_changes(self, subject: Subject) -> None:
        start = await subject.put("a")
        reader = await watching(subject, start + 1)
        await subject.store.txn([], [Put(f"{subject.root}0".encode(), b"", 0)])
        await subject.put("b")
        assert [event.key for event in await reader.events(1)] == [subject.key("b")]
        await reader.watch.close()

    async def test_one_transaction_is_one_revision(self, subject: Subject) -> None:
        start = await subject.put("a") + 1
        reader = await watching(subject, start)
        await subject.store.txn([], [Put(subject.key(f"{n:03}"), b"", 0) for n in range(100)])
        events = await reader.events(100)
        assert {event.mod_revision for event in events} == {start}
        assert [event.key for event in events] == sorted(event.key for event in events)
        await reader.watch.close()

    async def test_a_large_revision_comes_in_fragments_that_say_so(self, subject: Subject) -> None:
        """Larger than what a message may be: etcd is asked to split it."""
        start = await subject.put("a") + 1
        value = b"x" * 64_000
        operations = [Put(subject.key(f"{n:03}"), value, 0) for n in range(20)]
        await subject.store.txn([], operations)
        await subject.store.txn([], operations)
        reader = await watching(subject, start)
        assert [event.key for event in await reader.events(40)] == [op.key for op in operations] * 2
        await reader.watch.close()

    async def test_deletions_arrive_in_one_revision_and_in_the_order_of_keys_when_a_lease_ends(
        self, subject: Subject
    ) -> None:
        """An agent's key goes before those of its ranks: core/cell.py tells by that how a rank's key went."""
        lease = (await subject.store.grant(60)).lease_id
        names = ["prefill", "decode", "agents", "prefill/ranks/10"]
        for name in names:
            start = await subject.put(name, lease=lease) + 1
        reader = await watching(subject, start)
        await subject.store.revoke(lease)
        events = await reader.events(len(names))
        assert [event.key for event in events] == sorted(map(subject.key, names))
        assert all(event.kv is None and event.mod_revision == start for event in events)
        await reader.watch.close()

    @pytest.mark.parametrize("compacted", [False, True])
    async def test_a_progress_request_is_answered_when_the_watch_starts_at_the_last_revision(
        self, subject: Subject, compacted: bool
    ) -> None:
        """One revision later it would not be: etcd 3.5.33, 3.6.16 and 3.7.3 say nothing then."""
        revision = await subject.put("a")
        if compacted:
            subject.compact()
        reader = await watching(subject, revision)
        await reader.events(1)
        reader.watch.request_progress()
        answer = await reader.response()
        assert not answer.events and not answer.created
        assert answer.header.revision >= revision
        await reader.watch.close()

    async def test_a_revision_that_was_compacted_is_said_and_not_skipped(self, subject: Subject) -> None:
        start = await subject.put("a")
        for _ in range(5):
            last = await subject.put("a")
        subject.compact()
        reader = await watching(subject, start)
        answer = await reader.response()
        assert start < answer.compact_revision <= last
        assert not answer.events
        await reader.watch.close()

    async def test_the_oldest_that_was_kept_can_be_watched(self, subject: Subject) -> None:
        await subject.put("a", b"1")
        kept = await subject.put("a", b"2")
        subject.compact()
        reader = await watching(subject, kept)
        [event] = await reader.events(1)
        assert event.kv is not None and event.kv.value == b"2"
        await reader.watch.close()

    async def test_two_watches_do_not_disturb_each_other(self, subject: Subject) -> None:
        start = await subject.put("a") + 1
        first, second = await watching(subject, start), await watching(subject, start)
        await subject.put("b")
        assert await first.events(1) == await second.events(1)
        await first.watch.close()
        await subject.put("c")
        assert [event.key for event in await second.events(1)] == [subject.key("c")]
        await second.watch.close()

    async def test_a_closed_one_ends_with_an_error(self, subject: Subject) -> None:
        """It never ends quietly: whoever reads it must not think that nothing happens any more."""
        reader = await watching(subject, await subject.put("a") + 1)
        await reader.watch.close()
        with pytest.raises(StoreUnavailable):
            await reader.response()

    async def test_every_header_names_the_same_cluster(self, subject: Subject) -> None:
        result = await subject.store.txn([], [Put(subject.key("a"), b"", 0)])
        listing = await subject.store.list(subject.prefix)
        reader = Reader(await subject.store.watch(subject.prefix, result.header.revision))
        seen = {result.header.cluster_id, listing.header.cluster_id, (await reader.response()).header.cluster_id}
        assert len(seen) == 1 and 0 not in seen
        await reader.watch.close()


class TestHealth:
    async def test_size_and_alarms_are_returned_when_a_member_is_asked_for_its_status(self, subject: Subject) -> None:
        await subject.put("a")
        status = await subject.store.status()
        assert 0 < status.db_size_in_use <= status.db_size
        assert status.leader == status.id and status.revision > 0 and re.match(r"3\.\d+\.\d+", status.version)
        assert status.alarms == () and await subject.store.alarms() == []

    @pytest.mark.parametrize("name", ["NOSPACE", "CORRUPT"])
    async def test_an_alarm_is_listed_when_it_is_raised_and_no_longer(self, subject: Subject, name: str) -> None:
        subject.alarm(name, True)
        try:
            status = await subject.store.status()
            assert status.alarms == (name,)
            assert await subject.store.alarms() == [(status.id, name)]
        finally:
            subject.alarm(name, False)
        assert (await subject.store.status()).alarms == ()


CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "txn": lambda store: store.txn([], [Put(b"/k", b"", 0)]),
    "read": lambda store: store.read([b"/k"]),
    "list": lambda store: store.list(b"/"),
    "grant": lambda store: store.grant(5),
    "keep_alive": lambda store: store.keep_alive(1),
    "revoke": lambda store: store.revoke(1),
    "lease_times": lambda store: store.lease_times(1),
    "status": lambda store: store.status(),
    "alarms": lambda store: store.alarms(),
}


class TestNobodyAnswers:
    """Of the store on etcd alone: whatever is at the other end, callers see a StoreError, and soon."""

    @pytest.fixture(params=["nobody listens", "not etcd", "silent"])
    def endpoint(self, request: pytest.FixtureRequest, free_port: Callable[[], int]) -> str:
        port = free_port()
        if request.param != "nobody listens":
            listener = socket.create_server(("127.0.0.1", port))
            request.addfinalizer(listener.close)
        if request.param == "not etcd":
            request.addfinalizer(_answer_with_garbage(listener))
        return f"http://127.0.0.1:{port}"

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    async def test_it_is_unavailable(self, endpoint: str, call: Callable[[Store], Awaitable[object]]) -> None:
        async with EtcdStore(EtcdSettings(endpoints=(endpoint,), request_timeout_seconds=0.2)) as store:
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(call(store), PATIENCE)

    async def test_the_message_names_the_endpoint(self, free_port: Callable[[], int]) -> None:
        endpoint = f"http://127.0.0.1:{free_port()}"
        async with EtcdStore(EtcdSettings(endpoints=(endpoint,), request_timeout_seconds=0.2)) as store:
            with pytest.raises(StoreError, match=endpoint):
                await store.list(b"/")

    async def test_a_watch_ends_with_an_error(self, free_port: Callable[[], int]) -> None:
        settings = EtcdSettings(endpoints=(f"http://127.0.0.1:{free_port()}",), request_timeout_seconds=0.2)
        async with EtcdStore(settings) as store:
            reader = Reader(await store.watch(b"/", 1))
            with pytest.raises(StoreUnavailable):
                await reader.response()
            await reader.watch.close()


@pytest.mark.integration
@pytest.mark.every_etcd
class TestSeveralEndpoints:
    async def test_a_dead_one_is_passed_by(self, etcd: EtcdServer, root: str, free_port: Callable[[], int]) -> None:
        dead = f"http://127.0.0.1:{free_port()}"
        settings = EtcdSettings(endpoints=(dead, dead, etcd.endpoint), request_timeout_seconds=0.5)
        async with EtcdStore(settings) as store:
            lease = (await store.grant(60)).lease_id
            assert store.endpoint == etcd.endpoint
            assert await store.keep_alive(lease) == 60
            assert (await store.txn([], [Put(f"{root}/k".encode(), b"", lease)])).succeeded
            await store.revoke(lease)

    async def test_a_write_is_not_said_twice_but_the_next_one_goes_elsewhere(
        self, etcd: EtcdServer, root: str, free_port: Callable[[], int]
    ) -> None:
        settings = EtcdSettings(
            endpoints=(f"http://127.0.0.1:{free_port()}", etcd.endpoint), request_timeout_seconds=0.5
        )
        async with EtcdStore(settings) as store:
            put = Put(f"{root}/k".encode(), b"", 0)
            with pytest.raises(StoreUnavailable):
                await store.txn([], [put])
            assert (await store.txn([Compare(put.key, 0)], [put])).succeeded

    async def test_a_keepalive_goes_on_elsewhere(self, etcd: EtcdServer, free_port: Callable[[], int]) -> None:
        port = free_port()
        with socket.create_server(("127.0.0.1", port)):
            settings = EtcdSettings(endpoints=(f"http://127.0.0.1:{port}", etcd.endpoint), request_timeout_seconds=0.3)
            async with EtcdStore(settings) as store:
                with pytest.raises(StoreUnavailable):
                    await store.keep_alive(1)
                assert await store.keep_alive(1) == 0


@pytest.mark.integration
@pytest.mark.every_etcd
class TestPausedServer:
    """It takes requests and never answers: whether a write happened is unknown, and the error says so."""

    async def test_a_list_does_not_wait_for_a_page_s_own_timeout(
        self, etcd: EtcdServer, fresh_etcd: EtcdServer, root: str
    ) -> None:
        endpoints = (etcd.endpoint, fresh_etcd.endpoint)
        async with EtcdStore(EtcdSettings(endpoints=endpoints, request_timeout_seconds=0.3)) as store:
            await store.list(b"/")
            etcd.pause()
            assert await asyncio.wait_for(store.list(f"{root}/".encode()), PATIENCE)
            assert store.endpoint == fresh_etcd.endpoint

    async def test_every_call_ends_and_the_store_recovers(self, etcd: EtcdServer, root: str) -> None:
        settings = EtcdSettings(endpoints=(etcd.endpoint,), request_timeout_seconds=0.3)
        async with EtcdStore(settings) as store:
            lease = (await store.grant(60)).lease_id
            await store.keep_alive(lease)
            etcd.pause()
            for call in CALLS.values():
                with pytest.raises(StoreTimeout):
                    await call(store)
            etcd.unpause()
            etcd.wait_healthy()
            deadline = asyncio.get_running_loop().time() + PATIENCE
            while True:
                try:
                    assert await store.keep_alive(lease) == 60
                    break
                except StoreError:
                    assert asyncio.get_running_loop().time() < deadline
            await store.revoke(lease)


@pytest.mark.integration
@pytest.mark.every_etcd
async def test_nothing_is_left_of_a_watch_when_its_server_has_ended(fresh_etcd: EtcdServer) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(fresh_etcd.endpoint,), request_timeout_seconds=0.5)) as store:
        reader = Reader(await store.watch(b"/", 1))
        assert (await reader.response()).created
        await asyncio.to_thread(fresh_etcd.stop)
        with pytest.raises(StoreUnavailable):
            await reader.response()
        await reader.watch.close()
        end = asyncio.get_running_loop().time() + PATIENCE
        while len(asyncio.all_tasks()) > 1:
            assert asyncio.get_running_loop().time() < end, asyncio.all_tasks()
            await asyncio.sleep(0.01)


def _answer_with_garbage(listener: socket.socket) -> Callable[[], None]:
    """Serve what is no HTTP/2 on a socket; the returned function ends that."""

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    thread = threading.Thread(target=serve)
    thread.start()

    def stop() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    return stop
