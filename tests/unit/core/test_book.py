"""The room book: who is answered what, and what goes to etcd in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from etcd_pd.core.batch import Batch, Guard, Outcome, Registered, Rejected
from etcd_pd.core.keys import Keys
from etcd_pd.core.lease import Bucket, BucketPool
from etcd_pd.core.own_room import RankRef, State
from etcd_pd.core.records import MAX_TXN_OPS, Compare, Delete, KeyValue, Listing, Put
from etcd_pd.errors import AgentBusy, RankLost, RegistrationTimeout, RoomConflict, StoreRejected
from etcd_pd.wire.values import FAILED, Rank, RoomValue
from tests.support.memory_etcd import MemoryEtcd
from tests.unit.core.numbered import NumberedBook

KEYS = Keys("/cell")
RANK, OTHER = RankRef("p", 2), RankRef("p", 3)
TIMEOUT, TOMBSTONE = 30.0, 300.0
REFUSED = StoreRejected("txn", "no")


class Desk:
    """A book, a model etcd, and what a registrar does between them."""

    def __init__(self, max_rooms: int = 120, max_queue: int = 1000, release_delay: float = 0.0) -> None:
        self.etcd = MemoryEtcd()
        self.pool = BucketPool(325, 20.0, 1000, 300.0, 1.0)
        self.guards: dict[RankRef, Guard] = {}
        self.seen: int | None = None  # how far the view has come; None: all the way
        self.book = NumberedBook(
            KEYS,
            self.pool,
            self.guards.get,
            max_rooms=max_rooms,
            max_queue=max_queue,
            registration_timeout=TIMEOUT,
            tombstone_seconds=TOMBSTONE,
            release_delay=release_delay,
            place_of=lambda owner: str(owner).removesuffix("'s successor"),
        )
        for rank in (RANK, OTHER):
            self.comes_alive(rank)

    # --- ranks

    def comes_alive(self, rank: RankRef) -> Guard:
        key = KEYS.rank(rank.instance, Rank(rank.dp_rank))
        self.etcd.txn([], [Delete(key)])
        epoch = self.etcd.txn([], [Put(key, b"{}", 0)]).header.revision
        self.guards[rank] = Guard(epoch, (Compare(key, epoch),))
        return self.guards[rank]

    def dies_unseen(self, rank: RankRef) -> None:
        """Its key is gone, and this agent does not know it yet."""
        self.etcd.txn([], [Delete(KEYS.rank(rank.instance, Rank(rank.dp_rank)))])

    def dies(self, rank: RankRef, *, gone: bool = False) -> list[Outcome]:
        self.dies_unseen(rank)
        self.guards.pop(rank, None)
        return self.book.end_rank(rank, gone=gone)

    def is_dead(self, instance: str, value: RoomValue, kv: KeyValue) -> bool | None:
        if self.seen is not None and self.seen < kv.create_revision:
            return None
        key = KEYS.rank(instance, Rank(value.dp_rank))
        return key not in self.etcd.keys or self.etcd.keys[key].create_revision != value.epoch

    # --- the registrar's part

    def take(self, now: float = 0.0) -> tuple[Batch, Bucket | None]:
        batch = self.book.take(now)
        assert batch is not None, "nothing to write"
        bucket = None
        if batch.creates:
            bucket = self.pool.pick(now, batch.creates)
            if bucket is None:
                granted = self.etcd.grant(325)
                bucket = self.pool.opened(granted.lease_id, granted.ttl, now)
            self.pool.written(bucket, batch.creates)
        check(batch, bucket)
        return batch, bucket

    def write(self, batch: Batch, bucket: Bucket | None, now: float = 0.0, *, answered: bool = True) -> list[Outcome]:
        result = self.etcd.txn(batch.compares(), batch.operations(bucket))
        if result.succeeded and answered:
            return self.book.confirm(batch, bucket, result.header.revision, now)
        return self.examine(batch, bucket, now)

    def examine(self, batch: Batch, bucket: Bucket | None, now: float = 0.0) -> list[Outcome]:
        return self.book.read_back(batch, bucket, self.listing(batch), self.is_dead, now)

    def listing(self, batch: Batch) -> Listing:
        return self.etcd.read(list(dict.fromkeys(batch.keys())))

    def work(self, now: float = 0.0) -> list[Outcome]:
        """Write until nothing is left."""
        outcomes: list[Outcome] = []
        while (batch := self.book.take(now)) is not None:
            self.book.results.requeue(batch)
            outcomes += self.write(*self.take(now), now)
        return outcomes

    def value(self, room: int) -> RoomValue | None:
        kv = self.etcd.keys.get(KEYS.room("p", room))
        return RoomValue.from_json(kv.value) if kv else None

    def token(self, room: int) -> int:
        return self.etcd.keys[KEYS.room("p", room)].create_revision


def check(batch: Batch, bucket: Bucket | None) -> None:
    """What etcd asks of every transaction, and we of ourselves."""
    compares, operations = batch.compares(), batch.operations(bucket)
    assert 0 < len(compares) <= MAX_TXN_OPS
    assert 0 < len(operations) <= MAX_TXN_OPS
    keys = [operation.key for operation in operations]
    assert len(set(keys)) == len(keys), "one operation per key"
    compared = {compare.key for compare in compares}
    assert compared >= set(keys), "no write without a compare on its key"
    assert len(batch.keys()) <= MAX_TXN_OPS


def owners(outcomes: Sequence[Outcome], kind: type) -> list[object]:
    return [outcome.owner for outcome in outcomes if isinstance(outcome, kind)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def registered(desk: Desk, room: int, rank: RankRef = RANK, owner: object = "e") -> Registered:
    assert desk.book.register(owner, rank, room, 0.0) == []
    [outcome] = desk.work()
    assert isinstance(outcome, Registered)
    return outcome


class TestRegister:
    def test_the_key_names_rank_and_epoch_and_its_revision_is_the_token(self, desk: Desk) -> None:
        outcome = registered(desk, 77)
        kv = desk.etcd.keys[KEYS.room("p", 77)]
        assert outcome[:4] == ("e", 77, kv.create_revision, kv.lease)
        assert desk.value(77) == RoomValue(2, desk.guards[RANK].epoch)
        assert kv.lease in desk.etcd.leases()

    def test_siblings_are_folded_into_one_write_and_all_answered(self, desk: Desk) -> None:
        for sibling in range(8):
            assert desk.book.register(sibling, RANK, 77, 0.0) == []
        before = desk.etcd.revision
        outcomes = desk.work()
        assert desk.etcd.revision == before + 1
        assert owners(outcomes, Registered) == list(range(8))
        assert len({outcome[1:5] for outcome in outcomes}) == 1

    def test_a_sibling_that_comes_while_the_write_is_under_way_is_answered_with_it(self, desk: Desk) -> None:
        desk.book.register(1, RANK, 77, 0.0)
        batch, bucket = desk.take()
        assert desk.book.register(2, RANK, 77, 0.0) == []
        assert owners(desk.write(batch, bucket), Registered) == [1, 2]

    def test_a_sibling_that_comes_after_it_is_answered_at_once(self, desk: Desk) -> None:
        first = registered(desk, 77, owner=1)
        [outcome] = desk.book.register(2, RANK, 77, 0.0)
        assert outcome[:5] == first._replace(owner=2)[:5]

    def test_the_holder_is_named_when_another_rank_of_this_agent_has_the_room(self, desk: Desk) -> None:
        registered(desk, 77)
        [outcome] = desk.book.register("x", OTHER, 77, 0.0)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RoomConflict)
        assert outcome.error.holder == f"p/2@{desk.guards[RANK].epoch}"

    def test_the_same_number_in_another_instance_is_another_room(self, desk: Desk) -> None:
        elsewhere = RankRef("q", 0)
        desk.comes_alive(elsewhere)
        registered(desk, 77)
        registered(desk, 77, elsewhere)

    def test_a_room_held_elsewhere_is_a_conflict_and_the_others_are_written(self, desk: Desk) -> None:
        holder = desk.guards[OTHER].epoch
        desk.etcd.txn([], [Put(KEYS.room("p", 2), RoomValue(3, holder).to_json(), 0)])
        for room in (1, 2, 3):
            desk.book.register(room, RANK, room, 0.0)
        outcomes = desk.work()
        assert sorted(map(str, owners(outcomes, Registered))) == ["1", "3"]
        [rejected] = [o for o in outcomes if isinstance(o, Rejected)]
        assert isinstance(rejected.error, RoomConflict) and rejected.error.holder == f"p/3@{holder}"
        assert desk.value(2) == RoomValue(3, holder)

    def test_somebody_else_s_garbage_is_a_conflict(self, desk: Desk) -> None:
        desk.etcd.txn([], [Put(KEYS.room("p", 2), b"\xff", 0)])
        desk.book.register("e", RANK, 2, 0.0)
        [outcome] = desk.work()
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RoomConflict)

    def test_the_same_epoch_again_is_success(self, desk: Desk) -> None:
        """An agent that restarted does not know what its predecessor wrote."""
        revision = desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(2, desk.guards[RANK].epoch).to_json(), 0)])
        assert registered(desk, 7).token == revision.header.revision

    def test_more_than_the_queue_holds_is_refused_and_nothing_kept(self) -> None:
        desk = Desk(max_queue=3)
        for room in range(3):
            assert desk.book.register("e", RANK, room, 0.0) == []
        [outcome] = desk.book.register("e", RANK, 3, 0.0)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, AgentBusy)
        assert outcome.error.limit == 3
        desk.work()
        registered(desk, 3)

    def test_releases_and_failures_of_unknown_rooms_are_taken_when_the_queue_is_full(self) -> None:
        """They could not be said again: only another agent would hear of them."""
        desk = Desk(max_queue=3)
        for room in range(3):
            desk.book.register("e", RANK, room, 0.0)
        desk.book.fail(RANK, 5, "r", 0.0)
        desk.book.release(RANK, 6)
        assert len(desk.book) == 5
        desk.work()
        failed = desk.value(5)
        assert failed is not None and failed.state == FAILED


class TestBatches:
    def test_one_holds_as_many_rooms_as_fit_with_the_guards(self) -> None:
        desk = Desk(max_rooms=500)
        for room in range(300):
            desk.book.register("e", RANK if room % 2 else OTHER, room, 0.0)
        batch, _ = desk.take()
        assert len(batch.rooms) == MAX_TXN_OPS - 2

    def test_the_guards_of_many_ranks_fit_too(self) -> None:
        desk = Desk(max_rooms=500)
        ranks = [RankRef("p", dp) for dp in range(100)]
        for number, rank in enumerate(ranks):
            guard = desk.comes_alive(rank)
            desk.guards[rank] = Guard(guard.epoch, guard.compares * 3)
            desk.book.register("e", rank, number, 0.0)
        batch, _ = desk.take()
        assert len(batch.rooms) == MAX_TXN_OPS // 4
        desk.book.results.requeue(batch)
        assert len(owners(desk.work(), Registered)) == 100

    def test_it_holds_no_more_rooms_than_asked_for(self) -> None:
        desk = Desk(max_rooms=10)
        for room in range(25):
            desk.book.register("e", RANK, room, 0.0)
        sizes = []
        for _ in range(3):
            batch, bucket = desk.take()
            sizes.append(len(batch.rooms))
            desk.write(batch, bucket)
        assert sizes == [10, 10, 5]

    def test_rooms_go_out_in_the_order_in_which_they_came(self, desk: Desk) -> None:
        for room in (5, 1, 9):
            desk.book.register("e", RANK, room, 0.0)
        batch, bucket = desk.take()
        desk.book.results.requeue(batch)
        desk.book.register("e", RANK, 3, 0.0)
        batch, _ = desk.take()
        assert [own.room for own in batch.rooms] == [5, 1, 9, 3]

    def test_releases_need_no_lease(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        _, bucket = desk.take()
        assert bucket is None

    def test_a_rank_that_is_not_alive_yet_holds_up_nobody_else(self, desk: Desk) -> None:
        guard = desk.guards.pop(RANK)
        desk.book.register("early", RANK, 1, 0.0)
        desk.book.register("e", OTHER, 2, 0.0)
        assert owners(desk.work(), Registered) == ["e"]
        assert len(desk.book) == 1
        desk.guards[RANK] = guard
        assert owners(desk.work(), Registered) == ["early"]

    def test_nothing_to_write_is_no_batch(self, desk: Desk) -> None:
        assert desk.book.take(0.0) is None
        desk.guards.clear()
        desk.book.register("e", RANK, 1, 0.0)
        assert desk.book.take(0.0) is None


class TestRelease:
    def test_the_key_is_deleted(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        assert desk.work() == []
        assert desk.value(7) is None
        assert desk.book.count(RANK) == 0

    def test_it_goes_with_the_next_registration(self) -> None:
        """A transaction of its own would cost etcd, and all who watch, as much as a registration."""
        desk = Desk(release_delay=1.0)
        registered(desk, 7)
        desk.book.release(RANK, 7)
        assert desk.book.take(0.0) is None
        assert len(desk.book) == 1
        desk.book.register("a", RANK, 8, 0.0)
        batch, bucket = desk.take(0.5)
        assert [own.room for own in batch.rooms] == [8, 7]
        desk.write(batch, bucket)
        assert desk.value(7) is None and desk.value(8) is not None
        assert len(desk.book) == 0

    def test_while_it_waits_the_rank_s_next_life_is_not_given_a_dead_token(self) -> None:
        desk = Desk(release_delay=1.0)
        registered(desk, 7)
        desk.book.release(RANK, 7)
        desk.dies(RANK, gone=True)
        desk.comes_alive(RANK)
        assert desk.book.register("next life", RANK, 7, 0.0) == []
        [outcome] = desk.work()
        assert isinstance(outcome, Registered), "once the last life is gone, and that does not wait"
        assert (outcome.epoch, outcome.token) == (desk.guards[RANK].epoch, desk.token(7))

    def test_where_no_registration_comes_it_goes_alone(self) -> None:
        desk = Desk(release_delay=1.0)
        registered(desk, 7)
        desk.book.release(RANK, 7)
        assert desk.book.take(10.0) is None
        assert desk.book.take(10.9) is None
        desk.work(11.0)
        assert desk.value(7) is None
        registered(desk, 8)
        desk.book.release(RANK, 8)
        assert desk.book.take(20.0) is None, "each waits anew"

    def test_it_is_not_starved_by_registrations(self) -> None:
        desk = Desk(release_delay=1.0, max_rooms=2)
        registered(desk, 7)
        desk.book.release(RANK, 7)
        for room in range(100, 120):
            desk.book.register("a", RANK, room, 0.0)
        assert 7 not in {own.room for own in desk.take(0.0)[0].rooms}
        rest: list[int] = []
        while batch := desk.book.take(2.0):
            rest += [own.room for own in batch.rooms]
        assert 7 in rest

    def test_the_bucket_is_empty_then(self, desk: Desk) -> None:
        lease = registered(desk, 7).lease_id
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.pool.sweep(2.0) == [lease]

    def test_only_under_its_own_token(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.etcd.txn([], [Delete(KEYS.room("p", 7))])
        desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(3, desk.guards[OTHER].epoch).to_json(), 0)])
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.value(7) == RoomValue(3, desk.guards[OTHER].epoch)
        assert len(desk.book) == 0

    def test_before_the_write_it_is_written_answered_and_deleted(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        desk.book.release(RANK, 7)
        assert owners(desk.write(batch, bucket), Registered) == ["e"]
        desk.work()
        assert desk.value(7) is None

    def test_unknown_or_released_rooms_and_those_of_others_are_left_alone(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 8)
        desk.book.release(OTHER, 7)
        assert desk.work() == []
        assert desk.value(7) is not None
        desk.book.release(RANK, 7)
        desk.book.release(RANK, 7)
        desk.work()
        desk.book.release(RANK, 7)
        assert len(desk.book) == 0

    def test_a_late_sibling_does_not_bring_the_room_back(self, desk: Desk) -> None:
        first = registered(desk, 7, owner=1)
        desk.book.release(RANK, 7)
        desk.work()
        [outcome] = desk.book.register(2, RANK, 7, 1.0)
        assert outcome[:-1] == first._replace(owner=2)[:-1]
        assert desk.work() == []
        assert desk.value(7) is None

    def test_a_released_room_is_registered_anew_when_another_process_speaks_for_its_owner(self, desk: Desk) -> None:
        """An engine that connects again, or one that took its place while its rank lingered: no sibling of it."""
        first = registered(desk, 7, owner="e")
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.book.register("e's successor", RANK, 7, 1.0) == []
        [again] = desk.work()
        assert isinstance(again, Registered) and again.owner == "e's successor" and again.token > first.token
        assert desk.value(7) is not None

    def test_the_next_life_waits_when_another_process_of_its_owner_registers_a_room_that_ends(self, desk: Desk) -> None:
        first = registered(desk, 7, owner="e")
        desk.book.release(RANK, 7)
        assert desk.book.register("e's successor", RANK, 7, 1.0) == []
        outcomes = [outcome for outcome in desk.work() if isinstance(outcome, Registered)]
        outcomes += [outcome for outcome in desk.work() if isinstance(outcome, Registered)]
        assert [outcome.owner for outcome in outcomes] == ["e's successor"]
        assert outcomes[0].token > first.token

    def test_it_is_forgotten_after_a_while(self, desk: Desk) -> None:
        first = registered(desk, 7)
        desk.book.release(RANK, 7)
        desk.work(now=1.0)
        desk.book.expire(1.0 + TOMBSTONE)
        assert desk.book.register(2, RANK, 7, 400.0) == []
        [again] = desk.work(now=400.0)
        assert isinstance(again, Registered) and again.token > first.token

    def test_another_rank_may_have_a_released_room(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        desk.work()
        registered(desk, 7, OTHER)
        desk.book.expire(TOMBSTONE + 1)
        assert desk.book.count(OTHER) == 1, "the old use's end does not touch the new one"
        desk.book.release(OTHER, 7)
        desk.work()
        assert desk.value(7) is None

    @pytest.mark.parametrize("taker", [RANK, OTHER])
    @pytest.mark.parametrize("in_flight", [False, True])
    def test_a_released_room_is_registered_again_once_it_is_gone(self, taker: RankRef, in_flight: bool) -> None:
        desk = Desk(release_delay=5.0)
        first = registered(desk, 7)
        desk.book.release(RANK, 7)
        assert desk.book.take(0.0) is None
        flight = desk.take(6.0) if in_flight else None
        assert desk.book.register("e", taker, 7, 0.0) == []
        [again] = (desk.write(*flight) if flight else []) + desk.work(0.0)
        assert isinstance(again, Registered) and again.token > first.token, "and does not wait for the release's delay"
        assert desk.value(7) == RoomValue(taker.dp_rank, desk.guards[taker].epoch)
        assert len(desk.book.durable) == 1

    @pytest.mark.parametrize("taker", [RANK, OTHER])
    def test_a_failed_room_may_be_taken_again_by_whoever(self, desk: Desk, taker: RankRef) -> None:
        registered(desk, 7)
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.work()
        assert desk.book.register("e", taker, 7, 0.0) == []
        [again] = desk.work()
        assert isinstance(again, Registered)
        assert desk.value(7) == RoomValue(taker.dp_rank, desk.guards[taker].epoch)

    def test_what_another_agent_s_rank_failed_is_taken_over(self, desk: Desk) -> None:
        epoch = desk.guards[OTHER].epoch
        desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(OTHER.dp_rank, epoch, FAILED, "r").to_json(), 0)])
        assert registered(desk, 7).token == desk.token(7)

    def test_a_release_ends_the_next_life_too(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        desk.book.register("e", RANK, 7, 0.0)
        assert desk.book.release(RANK, 7) == []
        assert owners(desk.work(), Registered) == ["e"]
        assert desk.value(7) is None and len(desk.book.durable) == 2

    def test_its_key_is_not_written_twice_at_once_when_its_rank_died_before_it_was_deleted(self, desk: Desk) -> None:
        desk.book.fail(RANK, 7, "r", 0.0)
        batch, bucket = desk.take()
        desk.book.release(RANK, 7)
        desk.write(batch, bucket)
        desk.dies(RANK, gone=True)
        assert desk.book.register("other", OTHER, 7, 0.0) == []
        batch, bucket = desk.take()  # which looks at every key of the transaction
        outcomes = desk.write(batch, bucket) + desk.work()
        assert owners(outcomes, Registered) == ["other"]
        assert desk.value(7) == RoomValue(3, desk.guards[OTHER].epoch)

    def test_a_room_whose_rank_died_before_its_failure_was_written_is_anybody_s(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        desk.book.fail(RANK, 7, "r", 0.0)
        batch, bucket = desk.take()
        desk.write(batch, bucket, answered=False)
        desk.dies(RANK, gone=True)
        assert desk.book.register("other", OTHER, 7, 0.0) == []
        assert owners(desk.work(), Registered) == ["other"]

    def test_the_rest_of_a_lot_is_answered_when_its_first_room_is_found_to_be_there(self, desk: Desk) -> None:
        epoch = desk.guards[RANK].epoch
        desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(2, epoch).to_json(), 0)])
        assert desk.book.register_lot("e", RANK, [7, 8], 0.0) == []
        assert owners(desk.work(), Registered) == ["e", "e"]

    def test_the_next_life_may_fail_before_it_begins(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        desk.book.register("e", RANK, 7, 0.0)
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.work()
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "r")
        assert len(desk.book.durable) == 2

    def test_an_answer_that_was_lost_is_given_again_and_is_no_next_life(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        [first] = desk.work()
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.work()
        assert desk.book.inner.register("e", RANK, 7, 1, 0.0) == [first]
        assert desk.work() == []
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "r")

    def test_a_question_that_is_repeated_is_answered_once(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        assert desk.book.inner.register("e", RANK, 7, 1, 0.0) == []
        assert len(desk.work()) == 1

    def test_the_next_life_of_the_rank_may_have_it_too(self, desk: Desk) -> None:
        """What its predecessor released is no late sibling's room, but one that nobody holds."""
        first = registered(desk, 7, owner="old process")
        desk.book.release(RANK, 7)
        desk.work()
        desk.dies(RANK, gone=True)
        desk.comes_alive(RANK)
        assert desk.book.register("new process", RANK, 7, 1.0) == []
        [again] = desk.work(now=1.0)
        assert isinstance(again, Registered) and again.token > first.token
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch)

    @pytest.mark.parametrize("gone", [True, False])
    def test_a_rank_that_ends_right_after_it_leaves_no_key(self, desk: Desk, gone: bool) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        desk.dies(RANK, gone=gone)
        desk.work()
        assert desk.value(7) is None
        assert desk.book.count(RANK) == 0


class TestFail:
    def test_the_key_says_so_with_its_reason_under_the_same_token(self, desk: Desk) -> None:
        token = registered(desk, 7).token
        desk.book.fail(RANK, 7, "out of memory", 0.0)
        assert desk.work() == []
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "out of memory")
        assert desk.token(7) == token

    def test_a_room_that_was_never_registered_is_created_failed(self, desk: Desk) -> None:
        desk.book.fail(RANK, 7, "r", 0.0)
        assert desk.work() == []
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "r")

    def test_one_whose_registration_is_under_way_is_answered_and_failed(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        operations = batch.operations(bucket)
        desk.book.fail(RANK, 7, "r", 0.0)
        revision = desk.etcd.txn(batch.compares(), operations).header.revision
        assert owners(desk.book.confirm(batch, bucket, revision, 0.0), Registered) == ["e"]
        desk.work()
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "r")

    def test_one_whose_registration_waits_is_written_failed(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.work()
        value = desk.value(7)
        assert value is not None and value.state == FAILED

    def test_only_the_owner_may(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.fail(OTHER, 7, "r", 0.0)
        desk.work()
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch)

    def test_a_failed_room_no_longer_counts_as_the_rank_s(self, desk: Desk) -> None:
        """Else a rank that ever failed a room could never drain."""
        registered(desk, 7)
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.book.fail(RANK, 8, "r", 0.0)
        desk.work()
        assert desk.book.count(RANK) == 0

    def test_a_failed_room_may_still_be_released(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.work()
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.value(7) is None

    def test_failed_rooms_are_forgotten_after_a_while(self, desk: Desk) -> None:
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.work(now=1.0)
        desk.book.expire(1.0 + TOMBSTONE)
        assert len(desk.book._rooms) == 0

    @pytest.mark.parametrize("registered_before", [True, False])
    def test_a_failure_is_written_later_when_etcd_refuses_it(self, desk: Desk, registered_before: bool) -> None:
        if registered_before:
            registered(desk, 7)
        desk.book.fail(RANK, 7, "r", 0.0)
        batch, _ = desk.take()
        assert desk.book.refuse(batch, REFUSED) == []
        assert desk.book.durable == []
        desk.work()
        value = desk.value(7)
        assert value and value.state == FAILED
        assert len(desk.book.durable) == 1

    def test_a_release_is_written_later_when_etcd_refuses_it(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        batch, _ = desk.take()
        assert desk.book.refuse(batch, REFUSED) == []
        desk.work()
        assert desk.value(7) is None
        assert len(desk.book.durable) == 1

    def test_who_waits_is_answered_and_the_failure_goes_on_when_etcd_refuses_both(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        desk.book.fail(RANK, 7, "r", 0.0)
        batch, _ = desk.take()
        assert owners(desk.book.refuse(batch, REFUSED), Rejected) == ["e"]
        desk.work()
        value = desk.value(7)
        assert value and value.state == FAILED

    def test_one_whose_lease_went_costs_the_others_of_its_batch_nothing(self, desk: Desk) -> None:
        desk.etcd.revoke(registered(desk, 7).lease_id)
        bucket = desk.pool.opened(desk.etcd.grant(325).lease_id, 325, 0.0)
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.book.register("e", RANK, 8, 0.0)
        batch, _ = desk.take()
        assert not desk.etcd.txn(batch.compares(), batch.operations(bucket)).succeeded, "no lease error"
        desk.book.read_back(batch, bucket, desk.etcd.read(batch.keys()), desk.is_dead, 0.0)
        assert owners(desk.work(), Registered) == ["e"]


class TestLots:
    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("why", ["refused", "late", "owned"])
    def test_a_failure_is_written_when_its_lot_is_given_up(self, desk: Desk, place: int, why: str) -> None:
        rooms = [100, 101, 102]
        if why == "owned":  # by a rank of another agent
            theirs = RoomValue(OTHER.dp_rank, desk.guards[OTHER].epoch).to_json()
            desk.etcd.txn([], [Put(KEYS.room("p", rooms[place - 1]), theirs, 0)])
        desk.book.register_lot("e", RANK, rooms, 0.0)
        desk.book.fail(RANK, rooms[place], "r", 0.0)
        outcomes: list[Outcome] = []
        if why == "late":
            outcomes += desk.book.expire(TIMEOUT)
        elif why == "refused":
            batch, _ = desk.take()
            outcomes += desk.book.refuse(batch, REFUSED)
        outcomes += desk.work()
        assert sorted(outcome.room for outcome in outcomes if isinstance(outcome, Rejected)) == rooms
        values = {room: desk.value(room) for room in rooms}
        failed = values.pop(rooms[place])
        assert failed and failed.state == FAILED and failed.dp_rank == RANK.dp_rank
        assert not [value for value in values.values() if value and value.dp_rank == RANK.dp_rank]

    def test_all_are_written_in_one_transaction_and_each_is_answered(self, desk: Desk) -> None:
        assert desk.book.register_lot("e", RANK, range(100, 220), 0.0) == []
        batch, bucket = desk.take()
        assert len(batch.rooms) == 120
        outcomes = desk.write(batch, bucket)
        assert sorted(outcome.room for outcome in outcomes if isinstance(outcome, Registered)) == [*range(100, 220)]
        assert len({desk.token(room) for room in range(100, 220)}) == 1
        desk.book.release(RANK, 100)
        desk.work()
        assert (desk.value(100), desk.book.count(RANK)) == (None, 119)

    def test_one_that_does_not_fit_waits_for_the_next_batch_whole(self, desk: Desk) -> None:
        for room in range(10):
            desk.book.register("e", RANK, room, 0.0)
        desk.book.register_lot("e", OTHER, range(100, 220), 0.0)
        desk.book.register("e", RANK, 10, 0.0)
        first, bucket = desk.take()
        desk.write(first, bucket)
        second, bucket = desk.take()
        assert [len(first.rooms), len(second.rooms)] == [10, 120]

    def test_a_room_held_elsewhere_refuses_all_of_them_and_nothing_is_written(self, desk: Desk) -> None:
        holder = desk.guards[OTHER].epoch
        desk.etcd.txn([], [Put(KEYS.room("p", 8), RoomValue(3, holder).to_json(), 0)])
        desk.book.register("e", RANK, 1, 0.0)
        desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        outcomes = desk.work()
        assert [o.room for o in outcomes if isinstance(o, Registered)] == [1], "others of the batch are not concerned"
        refused = {o.room: o.error for o in outcomes if isinstance(o, Rejected)}
        assert set(refused) == {7, 8, 9}
        assert all(isinstance(error, RoomConflict) and error.room == 8 for error in refused.values())
        assert (desk.value(7), desk.value(9), desk.book.count(RANK)) == (None, None, 1)

    def test_a_room_that_another_rank_here_has_refuses_all_at_once(self, desk: Desk) -> None:
        registered(desk, 8)
        outcomes = desk.book.register_lot("e", OTHER, [7, 8, 9], 0.0)
        assert [o.room for o in outcomes if isinstance(o, Rejected)] == [7, 8, 9]
        assert len(desk.book) == 0

    def test_no_place_in_the_queue_refuses_all(self) -> None:
        desk = Desk(max_queue=2)
        outcomes = desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        assert all(isinstance(o, Rejected) and isinstance(o.error, AgentBusy) for o in outcomes) and len(outcomes) == 3
        assert len(desk.book) == 0

    def test_siblings_are_folded_and_rooms_that_the_rank_has_are_answered(self, desk: Desk) -> None:
        had = registered(desk, 7)
        for sibling in ("s1", "s2"):
            [outcome] = desk.book.register_lot(sibling, RANK, [7, 8, 9], 0.0)
            assert outcome[:4] == (sibling, 7, had.token, had.lease_id)
        assert sorted(map(str, owners(desk.work(), Registered))) == ["s1", "s1", "s2", "s2"]

    def test_what_a_dead_epoch_left_is_taken_over_first(self, desk: Desk) -> None:
        dead = desk.guards[OTHER].epoch
        for room in (8, 9):
            desk.etcd.txn([], [Put(KEYS.room("p", room), RoomValue(3, dead).to_json(), 0)])
        desk.dies(OTHER)
        desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        assert sorted(o.room for o in desk.work() if isinstance(o, Registered)) == [7, 8, 9]
        assert len({desk.token(room) for room in (7, 8, 9)}) == 1, "together"

    def test_nothing_is_known_of_the_outcome_and_it_happened_or_not(self, desk: Desk) -> None:
        for happened, rooms in ((True, [1, 2, 3]), (False, [4, 5, 6])):
            desk.book.register_lot("e", RANK, rooms, 0.0)
            batch, bucket = desk.take()
            if happened:
                desk.etcd.txn(batch.compares(), batch.operations(bucket))
            found = desk.book.read_back(batch, bucket, desk.etcd.read(batch.keys()), desk.is_dead, 0.0)
            assert len(found) == (3 if happened else 0)
            assert len(found + desk.work()) == 3
            assert len({desk.token(room) for room in rooms}) == 1

    def test_one_that_etcd_refuses_is_refused_whole(self, desk: Desk) -> None:
        desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        batch, _ = desk.take()
        assert len(owners(desk.book.refuse(batch, REFUSED), Rejected)) == 3
        assert desk.book.count(RANK) == 0

    def test_its_deadline_passes_for_all(self, desk: Desk) -> None:
        desk.guards.clear()
        desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        assert desk.book.take(0.0) is None
        assert len(owners(desk.book.expire(TIMEOUT), Rejected)) == 3
        assert desk.book.count(RANK) == 0 and len(desk.book) == 0

    def test_its_rank_goes(self, desk: Desk) -> None:
        desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        assert len(owners(desk.dies(RANK, gone=True), Rejected)) == 3
        assert desk.book.take(0.0) is None

    def test_one_of_them_may_be_released_or_failed_before_it_is_written(self, desk: Desk) -> None:
        desk.book.register_lot("e", RANK, [7, 8, 9], 0.0)
        desk.book.release(RANK, 8)
        desk.book.fail(RANK, 9, "r", 0.0)
        assert len(owners(desk.work(), Registered)) == 3
        value = desk.value(9)
        assert desk.value(8) is None and value is not None and value.state == FAILED


class TestLeaseEnds:
    def test_its_rooms_are_forgotten_and_no_longer_keep_the_rank_from_draining(self, desk: Desk) -> None:
        found = registered(desk, 7)
        registered(desk, 8)
        desk.etcd.revoke(found.lease_id)
        desk.pool.gone(found.lease_id)
        assert desk.book.expire(1.0) == []
        assert desk.book.count(RANK) == 0 and len(desk.book._rooms) == 0
        assert registered(desk, 7).token > found.token, "it may be had again"

    def test_those_that_an_earlier_agent_wrote_too(self, desk: Desk) -> None:
        first = registered(desk, 7)
        successor = Desk()
        successor.book.adopt(RANK, desk.guards[RANK].epoch, 7, first.token, first.lease_id, 10.0)
        assert successor.pool.sweep(10.0 + 324) == []
        successor.book.expire(10.0 + 324)
        assert successor.book.count(RANK) == 1
        assert successor.pool.sweep(10.0 + 325) == []
        successor.book.expire(10.0 + 325)
        assert successor.book.count(RANK) == 0

    def test_what_is_being_done_to_a_room_is_finished_first(self, desk: Desk) -> None:
        found = registered(desk, 7)
        desk.book.release(RANK, 7)
        batch, bucket = desk.take()
        desk.pool.gone(found.lease_id)
        desk.book.expire(1.0)
        desk.write(batch, bucket)
        assert desk.value(7) is None
        [outcome] = desk.book.register("late sibling", RANK, 7, 2.0)
        assert outcome[:4] == ("late sibling", 7, found.token, found.lease_id), "a tombstone as ever"


class TestEpochs:
    def test_no_room_is_written_for_a_rank_that_died_meanwhile(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        desk.dies_unseen(RANK)
        assert desk.write(batch, bucket) == []
        assert desk.value(7) is None
        assert desk.book.take(0.0) is None, "its room waits for the next epoch"
        desk.comes_alive(RANK)
        [outcome] = desk.work()
        assert isinstance(outcome, Registered)
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch)

    def test_its_room_is_written_when_a_restored_etcd_gives_the_same_number_to_its_next_epoch(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        dead = desk.guards[RANK]
        desk.dies_unseen(RANK)
        assert desk.write(batch, bucket) == []
        desk.etcd.revision = dead.epoch - 1
        desk.guards[RANK] = desk.comes_alive(RANK)._replace(history=dead.history + 1)
        assert desk.guards[RANK].epoch == dead.epoch
        assert owners(desk.work(), Registered) == ["e"]

    def test_a_dead_rank_in_a_batch_costs_the_others_nothing(self, desk: Desk) -> None:
        desk.book.register("dead", RANK, 7, 0.0)
        desk.book.register("alive", OTHER, 8, 0.0)
        batch, bucket = desk.take()
        desk.dies_unseen(RANK)
        outcomes = desk.write(batch, bucket)
        assert owners(outcomes + desk.work(), Registered) == ["alive"]

    def test_a_room_written_just_before_its_rank_died_is_lost_to_its_engine(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        epoch = desk.guards[RANK].epoch
        revision = desk.etcd.txn(batch.compares(), batch.operations(bucket)).header.revision
        desk.dies(RANK)
        [outcome] = desk.book.confirm(batch, bucket, revision, 0.0)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RankLost)
        assert outcome.error.epoch == epoch

    def test_or_when_the_rank_is_back_already(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        revision = desk.etcd.txn(batch.compares(), batch.operations(bucket)).header.revision
        desk.dies(RANK)
        desk.comes_alive(RANK)
        [outcome] = desk.book.confirm(batch, bucket, revision, 0.0)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RankLost)

    def test_rooms_that_were_written_die_with_the_epoch(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.dies(RANK)
        assert desk.book.count(RANK) == 0
        desk.comes_alive(RANK)
        desk.book.release(RANK, 7)
        desk.work()
        assert len(desk.book) == 0 and len(desk.book._rooms) == 0

    def test_a_room_of_a_predecessor_is_released_when_this_agent_never_knew_it(self, desk: Desk) -> None:
        theirs = RoomValue(RANK.dp_rank, desk.guards[RANK].epoch).to_json()
        desk.etcd.txn([], [Put(KEYS.room("p", 7), theirs, 0)])
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.value(7) is None and len(desk.book.durable) == 1

    @pytest.mark.parametrize("owner", ["another rank", "an epoch before"])
    def test_a_room_stands_when_who_releases_it_never_had_it(self, desk: Desk, owner: str) -> None:
        epoch = desk.guards[RANK].epoch
        theirs = RoomValue(OTHER.dp_rank, epoch) if owner == "another rank" else RoomValue(RANK.dp_rank, epoch - 1)
        desk.etcd.txn([], [Put(KEYS.room("p", 7), theirs.to_json(), 0)])
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.value(7) == theirs and len(desk.book.durable) == 1 and len(desk.book._rooms) == 0

    def test_a_release_of_an_unknown_room_rides_with_no_other_when_its_rank_has_no_epoch_yet(self) -> None:
        desk = Desk(release_delay=1.0)
        theirs = RoomValue(RANK.dp_rank, desk.guards[RANK].epoch).to_json()
        desk.etcd.txn([], [Put(KEYS.room("p", 7), theirs, 0)])
        guard = desk.guards.pop(RANK)
        desk.book.release(RANK, 7)
        desk.book.register("e", OTHER, 8, 0.0)
        assert owners(desk.write(*desk.take(), 0.0), Registered) == ["e"]
        assert desk.book.durable == [] and desk.value(7) is not None
        desk.guards[RANK] = guard
        desk.work(now=2.0)
        assert desk.value(7) is None and len(desk.book.durable) == 1

    def test_a_release_of_an_unknown_room_waits_when_its_rank_has_no_epoch_yet(self, desk: Desk) -> None:
        theirs = RoomValue(RANK.dp_rank, desk.guards[RANK].epoch).to_json()
        desk.etcd.txn([], [Put(KEYS.room("p", 7), theirs, 0)])
        guard = desk.guards.pop(RANK)
        desk.book.release(RANK, 7)
        assert desk.book.take(0.0) is None and desk.book.durable == []
        desk.guards[RANK] = guard
        desk.work()
        assert desk.value(7) is None and len(desk.book.durable) == 1

    def test_whoever_waits_is_answered_when_the_process_is_gone(self, desk: Desk) -> None:
        desk.guards.pop(RANK)
        desk.book.register("e", RANK, 7, 0.0)
        assert desk.book.take(0.0) is None
        [outcome] = desk.dies(RANK, gone=True)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RankLost)
        assert outcome.owner == "e"
        assert len(desk.book) == 0
        desk.comes_alive(RANK)
        assert desk.book.take(0.0) is None

    def test_what_a_dead_epoch_left_is_taken_over_by_delete_then_create(self, desk: Desk) -> None:
        dead = desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(3, 1).to_json(), 0)]).header.revision
        desk.book.register("e", RANK, 7, 0.0)
        assert desk.write(*desk.take()) == []
        batch, bucket = desk.take()
        assert (batch.compares(), batch.operations(bucket)) == (
            [Compare(KEYS.room("p", 7), dead)],
            [Delete(KEYS.room("p", 7))],
        )
        assert desk.write(batch, bucket) == []
        [outcome] = desk.work()
        assert isinstance(outcome, Registered) and outcome.token > dead
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch)

    def test_two_that_take_over_at_once_do_not_both_win(self, desk: Desk) -> None:
        desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(3, 1).to_json(), 0)])
        desk.book.register("e", RANK, 7, 0.0)
        desk.write(*desk.take())
        batch, bucket = desk.take()
        key, other = KEYS.room("p", 7), RoomValue(3, desk.guards[OTHER].epoch)
        desk.etcd.txn([], [Delete(key)])
        desk.etcd.txn([], [Put(key, other.to_json(), 0)])
        outcomes = desk.write(batch, bucket) + desk.work()
        assert [type(o.error) for o in outcomes if isinstance(o, Rejected)] == [RoomConflict]
        assert desk.value(7) == other

    def test_nothing_is_taken_over_before_the_view_knows_the_owner(self, desk: Desk) -> None:
        holder = RoomValue(3, desk.guards[OTHER].epoch)
        desk.etcd.txn([], [Put(KEYS.room("p", 7), holder.to_json(), 0)])
        desk.seen = 1
        desk.book.register("e", RANK, 7, 0.0)
        for _ in range(5):
            assert desk.write(*desk.take()) == []
        desk.seen = None
        [outcome] = desk.work()
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RoomConflict)


class TestUnknownOutcomes:
    @pytest.mark.parametrize("happened", [True, False])
    def test_a_write_is_read_back(self, desk: Desk, happened: bool) -> None:
        for room in (1, 2):
            desk.book.register(room, RANK, room, 0.0)
        batch, bucket = desk.take()
        if happened:
            desk.etcd.txn(batch.compares(), batch.operations(bucket))
        outcomes = desk.examine(batch, bucket)
        assert len(outcomes) == (2 if happened else 0)
        outcomes += desk.work()
        assert sorted(map(str, owners(outcomes, Registered))) == ["1", "2"]
        assert all(outcome.token == desk.token(outcome.room) for outcome in outcomes if isinstance(outcome, Registered))
        for room in (1, 2):
            desk.book.release(RANK, room)
        desk.work(now=1.0)
        assert len(desk.pool.sweep(50.0)) == 1 and len(desk.pool) == 0, "buckets are counted right"

    @pytest.mark.parametrize("happened", [True, False])
    def test_a_release_is_read_back(self, desk: Desk, happened: bool) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        batch, bucket = desk.take()
        if happened:
            desk.etcd.txn(batch.compares(), batch.operations(bucket))
        desk.examine(batch, bucket)
        desk.work()
        assert desk.value(7) is None
        assert desk.book.count(RANK) == 0

    @pytest.mark.parametrize("happened", [True, False])
    def test_an_eviction_is_read_back(self, desk: Desk, happened: bool) -> None:
        desk.etcd.txn([], [Put(KEYS.room("p", 7), RoomValue(3, 1).to_json(), 0)])
        desk.book.register("e", RANK, 7, 0.0)
        desk.write(*desk.take())
        batch, bucket = desk.take()
        assert batch.rooms[0].state is State.EVICTING
        if happened:
            desk.etcd.txn(batch.compares(), batch.operations(bucket))
        outcomes = desk.examine(batch, bucket) + desk.work()
        assert owners(outcomes, Registered) == ["e"]

    def test_a_failure_that_came_meanwhile_is_not_lost(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        desk.etcd.txn(batch.compares(), batch.operations(bucket))
        desk.book.fail(RANK, 7, "r", 0.0)
        desk.examine(batch, bucket)
        desk.work()
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "r")

    @pytest.mark.parametrize("happened", [True, False])
    def test_what_turns_out_written_after_a_timeout_is_failed(self, desk: Desk, happened: bool) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        if happened:
            desk.etcd.txn(batch.compares(), batch.operations(bucket))
        assert desk.book.give_up(batch, TIMEOUT - 0.1) == []
        [outcome] = desk.book.give_up(batch, TIMEOUT)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RegistrationTimeout)
        assert desk.book.give_up(batch, TIMEOUT + 1) == [], "once"
        assert desk.examine(batch, bucket, TIMEOUT + 1) == []
        assert desk.work(now=TIMEOUT + 1) == []
        failed = RoomValue(2, desk.guards[RANK].epoch, FAILED, "its registration timed out")
        assert desk.value(7) == (failed if happened else None), "decode may have been given it"
        assert desk.book.count(RANK) == 0

    def test_the_engine_s_own_failure_after_a_timeout_lands(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        desk.book.give_up(batch, TIMEOUT)
        desk.book.fail(RANK, 7, "its registration timed out", TIMEOUT)
        desk.examine(batch, bucket, TIMEOUT + 1)
        desk.work(now=TIMEOUT + 1)
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch, FAILED, "its registration timed out")
        assert len(desk.book.durable) == 1

    @pytest.mark.parametrize("happened", [True, False])
    def test_one_that_registers_again_meanwhile_keeps_its_room(self, desk: Desk, happened: bool) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        batch, bucket = desk.take()
        if happened:
            desk.etcd.txn(batch.compares(), batch.operations(bucket))
        desk.book.give_up(batch, TIMEOUT)
        assert desk.book.register("e", RANK, 7, TIMEOUT) == []
        assert desk.book.expire(TIMEOUT) == []
        outcomes = desk.examine(batch, bucket, TIMEOUT + 1) + desk.work(now=TIMEOUT + 1)
        assert owners(outcomes, Registered) == ["e"]
        assert desk.value(7) == RoomValue(2, desk.guards[RANK].epoch), "what was acknowledged stands"


class TestDeadlines:
    def test_a_registration_that_waits_too_long_is_given_up(self, desk: Desk) -> None:
        desk.book.register("e", RANK, 7, 0.0)
        assert desk.book.expire(TIMEOUT - 0.1) == []
        [outcome] = desk.book.expire(TIMEOUT)
        assert isinstance(outcome, Rejected) and isinstance(outcome.error, RegistrationTimeout)
        assert desk.book.take(TIMEOUT) is None
        assert desk.book.count(RANK) == 0

    def test_also_one_that_waits_for_its_rank(self, desk: Desk) -> None:
        desk.guards.clear()
        desk.book.register("e", RANK, 7, 0.0)
        assert desk.book.take(0.0) is None
        assert owners(desk.book.expire(TIMEOUT), Rejected) == ["e"]
        assert len(desk.book) == 0

    def test_releases_have_none(self, desk: Desk) -> None:
        registered(desk, 7)
        desk.book.release(RANK, 7)
        assert desk.book.expire(10 * TIMEOUT) == []
        desk.work(now=10 * TIMEOUT)
        assert desk.value(7) is None


class TestRefusals:
    def test_the_culprit_is_found_by_halves_and_the_others_are_written(self) -> None:
        desk, culprit, answered = Desk(), 13, []
        for room in range(40):
            desk.book.register(room, RANK, room, 0.0)
        for _ in range(100):
            if not len(desk.book):
                break
            batch, bucket = desk.take()
            if any(own.room == culprit for own in batch.rooms):
                answered += desk.book.refuse(batch, REFUSED)
            else:
                answered += desk.write(batch, bucket)
        assert owners(answered, Rejected) == [culprit]
        assert sorted(outcome[1] for outcome in answered) == list(range(40)), "everybody once"
        assert desk.book.take(0.0) is None

    def test_batches_grow_again_afterwards(self) -> None:
        desk = Desk(max_rooms=8)
        for room in range(8):
            desk.book.register("e", RANK, room, 0.0)
        for _ in range(4):
            desk.book.refuse(desk.take()[0], REFUSED)
        for room in range(100, 140):
            desk.book.register("e", RANK, room, 0.0)
        sizes = []
        while len(desk.book):
            batch, bucket = desk.take()
            sizes.append(len(batch.rooms))
            desk.write(batch, bucket)
        assert max(sizes) == 8


class TestAdoption:
    def test_a_successor_releases_what_its_predecessor_wrote(self, desk: Desk) -> None:
        first = registered(desk, 7)
        successor = Desk()
        successor.etcd, successor.guards = desk.etcd, desk.guards
        successor.book.adopt(RANK, desk.guards[RANK].epoch, 7, first.token, first.lease_id, 0.0)
        assert successor.book.count(RANK) == 1
        assert len(successor.book) == 0, "it stands already"
        successor.book.release(RANK, 7)
        successor.work()
        assert successor.value(7) is None

    def test_what_is_known_already_is_not_adopted_over(self, desk: Desk) -> None:
        token = registered(desk, 7).token
        desk.book.adopt(RANK, 1, 7, 99, 99, 0.0)
        desk.book.release(RANK, 7)
        desk.work()
        assert desk.value(7) is None, f"released under token {token}"

    def test_a_sibling_s_registration_of_an_adopted_room_is_answered(self, desk: Desk) -> None:
        first = registered(desk, 7)
        successor = Desk()
        successor.book.adopt(RANK, desk.guards[RANK].epoch, 7, first.token, first.lease_id, 0.0)
        [outcome] = successor.book.register("s", RANK, 7, 0.0)
        assert outcome[:5] == ("s", 7, first.token, first.lease_id, first.epoch)


def test_a_room_waits_for_one_look_when_the_view_is_behind_who_holds_many(desk: Desk) -> None:
    lease = desk.etcd.grant(60).lease_id
    for room in range(50):
        desk.etcd.txn([], [Put(KEYS.room("p", room), RoomValue(3, 2).to_json(), lease)])
        desk.book.register("e", RANK, room, 0.0)
    desk.seen = 0
    desk.write(*desk.take())
    desk.book.register("e", RANK, 100, 0.0)
    for _ in range(3):  # each is followed by a pause
        desk.write(*desk.take())
    assert desk.value(100)


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_life_ends_when_a_successor_of_the_process_that_asked_for_it_says_so(desk: Desk, fails: bool) -> None:
    registered(desk, 7)
    desk.book.release(RANK, 7)
    batch, bucket = desk.take()
    assert desk.book.register("e", RANK, 7, 0.0) == []
    if fails:
        desk.book.fail(RANK, 7, "why", 0.0, owner="e's successor")
    else:
        desk.book.release(RANK, 7, owner="e's successor")
    desk.write(batch, bucket)
    desk.work()
    assert (found := desk.value(7)) is None or found.state == FAILED
