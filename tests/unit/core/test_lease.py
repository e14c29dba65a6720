"""Leases: what the holder may believe at any moment, and how few it takes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from etcd_pd.core.lease import (
    RETRY_SECONDS,
    Bucket,
    BucketPool,
    Grant,
    KeepAlive,
    LeaseState,
    SessionLease,
    Wait,
)
from tests.support.memory_etcd import MemoryEtcd

TTL, MAX_AGE, MAX_ROOMS, MIN_LEFT, LINGER = 325, 20.0, 1000, 300.0, 1.0


def live_session(ttl: int = 6, sent_at: float = 100.0, jitter: float = 1.0) -> SessionLease:
    lease = SessionLease(5)
    lease.confirmed(0xA, ttl, sent_at, jitter)
    return lease


def pool() -> BucketPool:
    return BucketPool(TTL, MAX_AGE, MAX_ROOMS, MIN_LEFT, LINGER)


class TestSession:
    def test_it_asks_for_a_lease_first(self) -> None:
        lease = SessionLease(5)
        assert lease.state(0.0) is LeaseState.LOST
        assert lease.poll(0.0) == Grant(5)

    def test_what_etcd_granted_counts_not_what_was_asked(self) -> None:
        lease = live_session(ttl=9)
        assert (lease.granted_ttl, lease.deadline) == (9, 109.0)

    def test_its_deadline_counts_from_when_the_request_was_sent(self) -> None:
        lease = live_session(ttl=6, sent_at=100.0)
        assert lease.state(105.9) is LeaseState.LIVE
        assert lease.state(106.0) is LeaseState.SUSPECT

    def test_it_is_kept_alive_every_third_of_its_time(self) -> None:
        lease = live_session(ttl=6, sent_at=100.0)
        assert lease.poll(101.9) == Wait(102.0)
        assert lease.poll(102.0) == KeepAlive(0xA)

    def test_jitter_brings_keepalives_forward(self) -> None:
        assert live_session(ttl=6, sent_at=100.0, jitter=0.8).poll(101.6) == KeepAlive(0xA)

    def test_a_keepalive_without_answer_is_repeated_soon(self) -> None:
        lease = live_session()
        lease.failed(103.0)
        assert lease.poll(103.0) == Wait(103.0 + RETRY_SECONDS)
        assert lease.poll(103.0 + RETRY_SECONDS) == KeepAlive(0xA)

    def test_one_that_nobody_confirmed_is_suspect_and_still_kept_alive(self) -> None:
        lease = live_session()
        lease.failed(1000.0)
        assert lease.state(1001.0) is LeaseState.SUSPECT
        assert lease.poll(1001.0) == KeepAlive(0xA), "only etcd's word makes it lost"
        lease.confirmed(0xA, 6, 1001.0)
        assert lease.state(1001.1) is LeaseState.LIVE

    def test_ttl_0_means_lost_and_a_new_one_is_asked_for_at_once(self) -> None:
        lease = live_session()
        lease.confirmed(0xA, 0, 102.0)
        assert lease.state(102.0) is LeaseState.LOST
        assert lease.lease_id == 0
        assert lease.poll(102.0) == Grant(5)

    def test_a_grant_without_answer_is_repeated_soon(self) -> None:
        lease = SessionLease(5)
        lease.failed(10.0)
        assert lease.poll(10.0) == Wait(10.0 + RETRY_SECONDS)
        assert lease.poll(11.0) == Grant(5)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class HoldsNoDeadLease(RuleBasedStateMachine):
    """The holder never believes in a lease that etcd has expired: its deadline is never later than etcd's."""

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.etcd = MemoryEtcd(self.clock)
        self.lease = SessionLease(5)

    @rule(seconds=st.floats(0.01, 4.0))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(there=st.floats(0, 3), back=st.floats(0, 3), answered=st.booleans(), jitter=st.floats(0.8, 1.0))
    def act(self, there: float, back: float, answered: bool, jitter: float) -> None:
        sent_at = self.clock.now
        step = self.lease.poll(sent_at)
        if isinstance(step, Wait):
            assert step.until > sent_at
            return
        self.clock.now += there
        if isinstance(step, Grant):
            lease_id, ttl = self.etcd.grant(step.ttl)
        else:
            lease_id, ttl = step.lease_id, self.etcd.keep_alive(step.lease_id)
        self.clock.now += back
        if answered:
            self.lease.confirmed(lease_id, ttl, sent_at, jitter)
        else:
            self.lease.failed(self.clock.now, jitter)

    @precondition(lambda self: self.lease.lease_id in self.etcd.leases())
    @rule()
    def somebody_revokes_it(self) -> None:
        self.revoked = self.lease.lease_id
        self.etcd.revoke(self.lease.lease_id)

    revoked = 0

    @invariant()
    def live_means_that_etcd_has_it(self) -> None:
        if self.lease.state(self.clock.now) is LeaseState.LIVE and self.lease.lease_id != self.revoked:
            assert self.lease.lease_id in self.etcd.leases()

    def teardown(self) -> None:
        """Left alone, it has a live one within a time-to-live."""
        for _ in range(40):
            self.clock.now += 0.2
            self.act(there=0.0, back=0.0, answered=True, jitter=1.0)
        assert self.lease.state(self.clock.now) is LeaseState.LIVE
        assert self.lease.lease_id in self.etcd.leases()


TestHoldsNoDeadLease = HoldsNoDeadLease.TestCase
TestHoldsNoDeadLease.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


class TestBuckets:
    def test_there_is_none_before_a_room_comes(self) -> None:
        assert pool().pick(0.0, 1) is None

    def test_rooms_share_one(self) -> None:
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        buckets.written(bucket, 300)
        assert buckets.pick(11.0, 700) is bucket

    def test_it_never_gets_more_rooms_than_its_cap(self) -> None:
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        buckets.written(bucket, 999)
        assert buckets.pick(11.0, 2) is None

    def test_released_rooms_do_not_make_room_again(self) -> None:
        """A bucket that filled up again and again would never be revoked."""
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        buckets.written(bucket, MAX_ROOMS)
        buckets.removed(0xB, 11.0)
        assert buckets.pick(11.0, 1) is None

    def test_it_takes_no_rooms_beyond_its_age(self) -> None:
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        assert buckets.pick(10.0 + MAX_AGE - 0.1, 1) is bucket
        assert buckets.pick(10.0 + MAX_AGE, 1) is None

    def test_it_is_never_used_with_less_left_than_a_room_needs(self) -> None:
        buckets = pool()
        short = buckets.opened(0xB, 301, 10.0)
        assert buckets.pick(11.0, 1) is short
        assert buckets.pick(11.1, 1) is None

    def test_an_empty_one_is_revoked_after_a_while(self) -> None:
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        buckets.written(bucket, 2)
        buckets.removed(0xB, 11.0)
        assert buckets.sweep(15.0) == []
        buckets.removed(0xB, 15.0)
        assert buckets.sweep(15.9) == [], "the next room may come at once"
        assert buckets.sweep(16.0) == [0xB]
        assert buckets.sweep(17.0) == []
        assert len(buckets) == 0

    def test_an_empty_one_that_takes_no_more_rooms_is_revoked_at_once(self) -> None:
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        buckets.written(bucket, 1)
        buckets.removed(0xB, 10.0 + MAX_AGE)
        assert buckets.sweep(10.0 + MAX_AGE) == [0xB]

    def test_one_about_to_be_revoked_takes_no_room(self) -> None:
        buckets = pool()
        buckets.opened(0xB, TTL, 10.0)
        assert buckets.sweep(12.0) == [0xB]
        assert buckets.pick(12.0, 1) is None

    def test_one_with_rooms_is_left_alone_until_it_expires(self) -> None:
        buckets = pool()
        buckets.written(buckets.opened(0xB, TTL, 10.0), 1)
        assert buckets.sweep(10.0 + TTL - 1) == []
        assert len(buckets) == 1
        assert buckets.sweep(10.0 + TTL) == [], "etcd does that"
        assert len(buckets) == 0

    def test_one_that_etcd_lost_takes_no_room(self) -> None:
        buckets = pool()
        bucket = buckets.opened(0xB, TTL, 10.0)
        buckets.gone(0xB)
        assert bucket.closed
        assert buckets.pick(11.0, 1) is None

    def test_leases_of_others_are_not_counted(self) -> None:
        buckets = pool()
        buckets.removed(0xDEAD, 10.0)
        buckets.gone(0xDEAD)
        assert len(buckets) == 0

    def test_one_of_an_earlier_agent_takes_no_room_and_is_never_revoked(self) -> None:
        """Rooms of engines that have not come back yet may hang on it."""
        buckets = pool()
        buckets.adopted(0xA, 10.0)
        buckets.adopted(0xA, 11.0)
        assert buckets.pick(11.0, 1) is None
        for _ in range(2):
            buckets.removed(0xA, 12.0)
        assert buckets.sweep(10.0 + TTL - 1) == [] and 0xA in buckets
        assert buckets.sweep(10.0 + TTL) == [] and 0xA not in buckets, "etcd does that"
        buckets.adopted(0xB, 20.0)
        assert buckets.drain() == []

    def test_at_the_end_all_are_given_back(self) -> None:
        buckets = pool()
        buckets.written(buckets.opened(0xA, TTL, 10.0), MAX_ROOMS)
        buckets.written(buckets.opened(0xB, TTL, 11.0), 5)
        assert sorted(buckets.drain()) == [0xA, 0xB]
        assert len(buckets) == 0

    @pytest.mark.parametrize("rate", [1, 30, 300, 3000])
    def test_few_leases_under_load_and_none_at_rest(self, rate: int) -> None:
        """Rooms live one second; in all the minute of it, the leases that exist at once stay few."""
        buckets, most, leases = pool(), 0, 0
        living: list[tuple[float, Bucket, int]] = []
        for tick in range(600):
            now = tick / 10
            rooms = rate // 10 if rate >= 10 else (tick % 10 == 0)
            if rooms:
                bucket = buckets.pick(now, rooms)
                if bucket is None:
                    leases += 1
                    bucket = buckets.opened(leases, TTL, now)
                buckets.written(bucket, rooms)
                living.append((now + 1.0, bucket, rooms))
            while living and living[0][0] <= now:
                _, bucket, ended = living.pop(0)
                for _ in range(ended):
                    buckets.removed(bucket.lease_id, now)
            buckets.sweep(now)
            most = max(most, len(buckets))
        assert most <= 1 + rate / MAX_ROOMS + 2
        assert leases <= 60 * max(rate / MAX_ROOMS, 1 / MAX_AGE) + rate * 60 / MAX_ROOMS + 4
        for _, bucket, ended in living:
            for _ in range(ended):
                buckets.removed(bucket.lease_id, 60.0)
        buckets.sweep(60.0 + LINGER)
        assert len(buckets) == 0

    @given(
        st.lists(
            st.tuples(st.sampled_from(["write", "remove", "sweep", "gone"]), st.floats(0, 30), st.integers(1, 120)),
            max_size=60,
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_no_order_of_events_breaks_a_cap(self, steps: list[tuple[str, float, int]]) -> None:
        buckets, now, ids = pool(), 0.0, 0
        live: dict[int, int] = {}
        for action, pause, rooms in steps:
            now += pause
            if action == "write":
                bucket = buckets.pick(now, rooms)
                if bucket is None:
                    ids += 1
                    bucket = buckets.opened(ids, TTL, now)
                buckets.written(bucket, rooms)
                live[bucket.lease_id] = live.get(bucket.lease_id, 0) + rooms
                assert bucket.written <= MAX_ROOMS
                assert now - bucket.opened_at < MAX_AGE
                assert bucket.deadline - now >= MIN_LEFT
            elif action == "remove" and live:
                lease_id = next(iter(live))
                for _ in range(min(rooms, live[lease_id])):
                    buckets.removed(lease_id, now)
                live[lease_id] -= min(rooms, live[lease_id])
            elif action == "gone" and live:
                lease_id = next(iter(live))
                buckets.gone(lease_id)
                live.pop(lease_id)
            for lease_id in buckets.sweep(now):
                assert not live.get(lease_id), "no lease is revoked under a room that lives"
                live.pop(lease_id, None)
