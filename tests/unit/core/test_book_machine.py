"""Two agents' room books against one model etcd, with lost answers, dying ranks and late views."""

from __future__ import annotations

import math
from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from etcd_pd.core.batch import Batch, Durable, Guard, Outcome, Registered, Rejected
from etcd_pd.core.keys import Keys
from etcd_pd.core.lease import Bucket, BucketPool
from etcd_pd.core.own_room import RankRef
from etcd_pd.core.records import MAX_TXN_OPS, Compare, Delete, KeyValue, Operation, Put
from etcd_pd.errors import LeaseNotFound, RegistrationTimeout, StoreRejected
from etcd_pd.wire.values import ASSIGNED, Rank, RoomValue
from tests.support.memory_etcd import MemoryEtcd
from tests.unit.core.numbered import NumberedBook

KEYS = Keys("/cell")
TIMEOUT, TOMBSTONE = 5.0, 40.0
#: Seconds that a release waits for a registration to go with: a step of time may end it or not.
RELEASE_DELAY = 1.0
RANKS = {0: 0, 1: 0, 2: 1}  # DP rank -> agent
ROOMS = st.integers(1, 4)


#: DP rank, sibling, life.
Owner = tuple[int, int, int]


def rank_key(dp: int) -> bytes:
    return KEYS.rank("p", Rank(dp))


class Agent:
    """A book, what its view has seen, and its one batch in flight."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        self.etcd = etcd
        self.pool = BucketPool(40, 2.0, 6, 30.0, 1.0)
        self.epochs: dict[int, int] = {}
        self.seen = 0
        self.present: set[int] = set()
        self.flight: tuple[Batch, Bucket | None] | None = None
        self.unsure = False  # whether the flight may have landed
        self.book = NumberedBook(
            KEYS,
            self.pool,
            self.guard_of,
            max_rooms=5,
            max_queue=12,
            registration_timeout=TIMEOUT,
            tombstone_seconds=TOMBSTONE,
            release_delay=RELEASE_DELAY,
        )

    def guard_of(self, ref: RankRef) -> Guard | None:
        epoch = self.epochs.get(ref.dp_rank, 0)
        if not epoch or ref.dp_rank not in self.present:
            return None
        return Guard(epoch, (Compare(rank_key(ref.dp_rank), epoch),))

    def is_dead(self, instance: str, value: RoomValue, kv: KeyValue) -> bool | None:
        return None if self.seen < kv.create_revision else self.epochs.get(value.dp_rank) != value.epoch


class TwoAgents(RuleBasedStateMachine):
    """Whoever asked is answered once; what was acknowledged stands, under its token, while its epoch lives."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.etcd = MemoryEtcd(lambda: self.now)
        self.agents = [Agent(self.etcd), Agent(self.etcd)]
        self.owed: Counter[tuple[Owner, int]] = Counter()
        self.acknowledged: dict[int, tuple[int, int, int, int]] = {}  # room -> dp, epoch, token, lease
        # rooms that a rank asked for and did not end, and the number with which their present use began
        self.wanted: dict[int, dict[int, int]] = {dp: {} for dp in RANKS}
        self.lives = dict.fromkeys(RANKS, 0)
        self.over: set[tuple[int, int]] = set()  # rank and room: released or failed
        self.behind: Counter[tuple[Owner, int]] = Counter()  # by how many uses of a room a sibling is late
        self.late: set[tuple[Owner, int]] = set()  # what it says of one that is over
        self.users: dict[tuple[int, int], set[Owner]] = {}  # who registered it since
        self.unanswered: dict[tuple[Owner, int], int] = {}  # rooms of registrations, by who asked and the number
        self.undurable: dict[tuple[Owner, int], tuple[int, bool]] = {}  # rooms of endings, and whether they failed
        for dp in RANKS:
            self.rank_appears(dp)

    # --- engines

    @rule(dp=st.sampled_from([*RANKS]), room=ROOMS, sibling=st.integers(0, 1))
    def register(self, dp: int, room: int, sibling: int) -> None:
        owner = (dp, sibling, self.lives[dp])
        self.owed[owner, room] += 1
        outcomes = self.agents[RANKS[dp]].book.register(owner, RankRef("p", dp), room, self.now)
        self.asks(owner, room, self.agents[RANKS[dp]].book.number, outcomes)
        self.hear(dp, outcomes)

    @rule(dp=st.sampled_from([*RANKS]), rooms=st.sets(ROOMS, min_size=2), sibling=st.integers(0, 1))
    def register_lot(self, dp: int, rooms: set[int], sibling: int) -> None:
        owner = (dp, sibling, self.lives[dp])
        self.owed.update((owner, room) for room in rooms)
        outcomes = self.agents[RANKS[dp]].book.register_lot(owner, RankRef("p", dp), sorted(rooms), self.now)
        first = self.agents[RANKS[dp]].book.number - len(rooms) + 1
        for number, room in enumerate(sorted(rooms), first):
            self.asks(owner, room, number, outcomes)
        self.hear(dp, outcomes)

    def asks(self, owner: Owner, room: int, number: int, outcomes: list[Outcome]) -> None:
        self.unanswered[owner, number] = room
        dp = owner[0]
        use, users = (dp, room), self.users.setdefault((dp, room), set())
        is_late_sibling = use in self.over and owner not in users
        if self.behind[owner, room]:
            self.behind[owner, room] -= 1
            self.late.add((owner, number))
            return
        if any(isinstance(o, Rejected) for o in outcomes):
            return
        if not is_late_sibling:
            self.wanted[dp].setdefault(room, number)
            if use in self.over:
                self.over.discard(use)
                self.behind.update((sibling, room) for sibling in self.siblings(dp) if sibling not in users)
                users.clear()
        users.add(owner)

    def siblings(self, dp: int) -> list[Owner]:
        return [(dp, sibling, self.lives[dp]) for sibling in (0, 1)]

    @rule(dp=st.sampled_from([*RANKS]), room=ROOMS, sibling=st.integers(0, 1))
    def release(self, dp: int, room: int, sibling: int) -> None:
        owner = (dp, sibling, self.lives[dp])
        self.ends(owner, room, fails=False)
        self.hear(dp, self.agents[RANKS[dp]].book.release(RankRef("p", dp), room, owner))

    @rule(dp=st.sampled_from([*RANKS]), sibling=st.integers(0, 1))
    def says_again(self, dp: int, sibling: int) -> None:
        """Its connection broke: what was not answered, and which endings may not be durable, in their order."""
        owner, book, rank = (dp, sibling, self.lives[dp]), self.agents[RANKS[dp]].book, RankRef("p", dp)
        for durable in book.durable:
            self.undurable.pop((durable.owner, durable.sequence), None)  # type: ignore[arg-type]
        endings = {number: said for (one, number), said in self.undurable.items() if one == owner}
        asked = {number: room for (one, number), room in self.unanswered.items() if one == owner}
        for number in sorted([*endings, *asked]):
            if number in asked:
                outcomes = book.inner.register(owner, rank, asked[number], number, self.now)
            elif endings[number][1]:
                outcomes = book.inner.fail(owner, rank, endings[number][0], "why", number, self.now)
            else:
                outcomes = book.inner.release(owner, rank, endings[number][0], number)
            assert outcomes == [], "its answer is still to come"

    @rule(dp=st.sampled_from([*RANKS]), room=ROOMS, sibling=st.integers(0, 1))
    def fail(self, dp: int, room: int, sibling: int) -> None:
        owner = (dp, sibling, self.lives[dp])
        self.ends(owner, room, fails=True)
        self.agents[RANKS[dp]].book.fail(RankRef("p", dp), room, "why", self.now, owner)

    def ends(self, owner: Owner, room: int, *, fails: bool) -> None:
        dp = owner[0]
        self.undurable[owner, self.agents[RANKS[dp]].book.number + 1] = room, fails
        if self.is_late(owner, room):
            self.behind[owner, room] += 1
            return
        if self.is_known(dp, room):
            self.users.setdefault((dp, room), set()).add(owner)
        elif fails:  # a use of the room that nobody has registered
            self.users[dp, room] = {owner}
        self.wanted[dp].pop(room, None)
        self.over.add((dp, room))
        if room in self.acknowledged and self.acknowledged[room][0] == dp:
            del self.acknowledged[room]

    def is_late(self, owner: Owner, room: int) -> bool:
        """Whether it ends a use that it took part in, when a sibling has asked for the next one."""
        own = self.agents[RANKS[owner[0]]].book.inner._rooms.find("p", room)
        if own is None or own.rank.dp_rank != owner[0] or not own.is_ending or owner not in dict(own.spoken):
            return False
        return bool(own.later) and not any(later.said[0] == owner for later in own.later)

    def is_known(self, dp: int, room: int) -> bool:
        """Whether the book has a use of the room by the rank that it does not take for past."""
        book, rank = self.agents[RANKS[dp]].book.inner, RankRef("p", dp)
        own = book._rooms.find("p", room)
        return own is not None and own.rank == rank and not book._rooms.is_past(own, rank, None)

    # --- ranks

    @rule(dp=st.sampled_from([*RANKS]))
    def rank_key_vanishes(self, dp: int) -> None:
        self.etcd.txn([], [Delete(rank_key(dp))])
        self.forget(dp)

    @rule(dp=st.sampled_from([*RANKS]))
    def process_dies(self, dp: int) -> None:
        agent = self.agents[RANKS[dp]]
        agent.present.discard(dp)
        self.rank_key_vanishes(dp)
        self.wanted[dp].clear()
        self.lives[dp] += 1
        for room in range(1, 5):
            self.over.discard((dp, room))
            self.users.pop((dp, room), None)
        self.hear(dp, agent.book.end_rank(RankRef("p", dp), gone=True))
        assert not any(owed for (owner, _), owed in self.owed.items() if owner[0] == dp), "nobody waits for a dead one"

    @rule(dp=st.sampled_from([*RANKS]))
    def rank_appears(self, dp: int) -> None:
        if rank_key(dp) not in self.etcd.keys:
            self.etcd.txn([], [Put(rank_key(dp), b"{}", 0)])
        self.agents[RANKS[dp]].present.add(dp)

    @rule(which=st.integers(0, 1))
    def view_catches_up(self, which: int) -> None:
        agent = self.agents[which]
        before, agent.seen = agent.epochs, self.etcd.revision
        agent.epochs = {dp: kv.create_revision for dp in RANKS if (kv := self.etcd.keys.get(rank_key(dp)))}
        for dp, owner in RANKS.items():
            if owner == which and dp in before and agent.epochs.get(dp) != before[dp]:
                self.hear(dp, agent.book.end_rank(RankRef("p", dp), gone=False))

    def forget(self, dp: int) -> None:
        for room in [room for room, ack in self.acknowledged.items() if ack[0] == dp]:
            del self.acknowledged[room]

    # --- the registrar's part

    @rule(which=st.integers(0, 1))
    def send(self, which: int) -> None:
        agent = self.agents[which]
        if agent.flight:
            return
        batch = agent.book.take(self.now)
        if batch is None:
            return
        bucket = None
        if batch.creates:
            bucket = agent.pool.pick(self.now, batch.creates)
            if bucket is None:
                granted = self.etcd.grant(40)
                bucket = agent.pool.opened(granted.lease_id, granted.ttl, self.now)
            agent.pool.written(bucket, batch.creates)
        agent.flight, agent.unsure = (batch, bucket), False

    @rule(which=st.integers(0, 1), happens=st.booleans(), answered=st.booleans())
    def arrives(self, which: int, happens: bool, answered: bool) -> None:
        agent = self.agents[which]
        if not agent.flight:
            return
        batch, bucket = agent.flight
        compares, operations = batch.compares(), batch.operations(bucket)
        self.check(compares, operations)
        try:
            result = self.etcd.txn(compares, operations) if happens else None
        except LeaseNotFound:
            agent.flight = None
            if bucket:
                agent.pool.gone(bucket.lease_id)
            agent.book.results.requeue(batch)
            return
        if result and result.succeeded and answered:
            agent.flight = None
            self.hear_all(agent.book.confirm(batch, bucket, result.header.revision, self.now))
        else:
            self.examine(agent)

    @rule(which=st.integers(0, 1))
    def is_refused(self, which: int) -> None:
        agent = self.agents[which]
        if agent.flight and not agent.unsure:  # it would be read back
            (batch, _), agent.flight = agent.flight, None
            self.hear_all(agent.book.refuse(batch, StoreRejected("txn", "no")))

    @rule(which=st.integers(0, 1), happens=st.booleans())
    def nobody_answers(self, which: int, happens: bool) -> None:
        """The write may have happened; it cannot be read back yet."""
        agent = self.agents[which]
        if agent.flight:
            batch, bucket = agent.flight
            if happens:
                try:
                    self.etcd.txn(batch.compares(), batch.operations(bucket))
                except LeaseNotFound:
                    pass
            agent.unsure = True
            self.hear_all(agent.book.give_up(batch, self.now))

    def examine(self, agent: Agent) -> None:
        assert agent.flight
        (batch, bucket), agent.flight = agent.flight, None
        listing = self.etcd.read(list(dict.fromkeys(batch.keys())))
        self.hear_all(agent.book.read_back(batch, bucket, listing, agent.is_dead, self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, TIMEOUT, TOMBSTONE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for agent in self.agents:
            self.hear_all(agent.book.expire(self.now))
            for lease_id in agent.pool.sweep(self.now):
                if lease_id in self.etcd.leases():
                    self.etcd.revoke(lease_id)
        leases = set(self.etcd.leases())
        for room in [room for room, ack in self.acknowledged.items() if ack[3] not in leases]:
            del self.acknowledged[room]

    # --- what must hold

    def check(self, compares: list[Compare], operations: list[Operation]) -> None:
        keys = [operation.key for operation in operations]
        assert keys and len(set(keys)) == len(keys)
        assert max(len(compares), len(operations)) <= MAX_TXN_OPS
        assert {compare.key for compare in compares} >= set(keys)

    def hear_all(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            assert isinstance(outcome.owner, tuple)
            self.hear(outcome.owner[0], [outcome])

    def hear(self, dp: int, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            assert isinstance(outcome.owner, tuple) and not isinstance(outcome, Durable)
            self.owed[outcome.owner, outcome.room] -= 1
            self.unanswered.pop((outcome.owner, outcome.sequence), None)
            assert self.owed[outcome.owner, outcome.room] >= 0, "nobody is answered twice"
            epoch = self.agents[RANKS[dp]].epochs.get(dp, 0)
            kv = self.etcd.keys.get(rank_key(dp))
            lives = kv is not None and kv.create_revision == epoch
            if isinstance(outcome, Rejected) and isinstance(outcome.error, RegistrationTimeout):
                self.fail(dp, outcome.room, outcome.owner[1])  # as its client does
            present = outcome.sequence >= self.wanted[dp].get(outcome.room, math.inf)
            present = present and (outcome.owner, outcome.sequence) not in self.late
            if isinstance(outcome, Registered) and lives and present:
                held = self.acknowledged.get(outcome.room)
                assert held is None or held[0] == dp, "a room has one owner"
                if outcome.lease_id in self.etcd.leases():
                    self.acknowledged[outcome.room] = (dp, epoch, outcome.token, outcome.lease_id)

    @invariant()
    def what_was_acknowledged_stands(self) -> None:
        for room, (dp, epoch, token, _) in self.acknowledged.items():
            kv = self.etcd.keys.get(KEYS.room("p", room))
            assert kv is not None and kv.create_revision == token, f"room {room} was lost"
            assert RoomValue.from_json(kv.value) == RoomValue(dp, epoch, ASSIGNED)

    def teardown(self) -> None:
        """Left alone, everything is answered and written, and what was released is gone."""
        for dp in RANKS:
            self.rank_appears(dp)
            for room in range(1, 5):
                for sibling in (0, 1) if room not in self.wanted[dp] else ():
                    owner = (dp, sibling, self.lives[dp])
                    self.hear(dp, self.agents[RANKS[dp]].book.release(RankRef("p", dp), room, owner))
        for _ in range(60):
            self.now += RELEASE_DELAY / 10
            for which in range(len(self.agents)):
                self.view_catches_up(which)
                self.send(which)
                self.arrives(which, happens=True, answered=True)
        assert not +self.owed, "everybody is answered"
        assert [len(agent.book) for agent in self.agents] == [0, 0]
        self.what_was_acknowledged_stands()
        for room in range(1, 5):
            kv = self.etcd.keys.get(KEYS.room("p", room))
            value = RoomValue.from_json(kv.value) if kv else None
            if value and value.epoch == self.etcd.keys[rank_key(value.dp_rank)].create_revision:
                assert room in self.wanted[value.dp_rank], "nothing is left of what was released"


TestTwoAgents = TwoAgents.TestCase
TestTwoAgents.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
