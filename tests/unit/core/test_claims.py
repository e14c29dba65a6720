"""How a rank gets its key: each state of etcd that a claim may find, and what is written then."""

from __future__ import annotations

import pytest

from etcd_pd.core.claims import Blocked, Claims, LocalRank, Write
from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Delete, Header, Listing, Put, TxnResult
from etcd_pd.errors import InstanceConflict
from etcd_pd.wire.values import ENDED, InstanceInfo, Rank, RankEndpoint, Topology
from tests.support.memory_etcd import MemoryEtcd

KEYS = Keys("/cell")
TWO_RANKS = Topology(dp=2)
INFO_KEY, RANK_KEY = KEYS.prefill("p"), KEYS.rank("p", Rank(0))


class Desk:
    """etcd, and claims of one agent in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.etcd = MemoryEtcd(lambda: self.now)
        self.claims = Claims(KEYS, lambda: "start-1")
        self.lease = self.etcd.grant(5).lease_id

    def listing(self) -> Listing:
        return self.etcd.scan(INFO_KEY)

    def step(self, local: LocalRank) -> Write | Blocked:
        return self.claims.next_step(local, self.listing(), self.lease)

    def write(self, local: LocalRank, step: Write | Blocked) -> Blocked | None:
        assert isinstance(step, Write)
        done = self.etcd.txn(step.conditions, step.operations)
        return self.claims.finish(local, step, done.header.revision if done.succeeded else 0, self.lease)

    def claim(self, local: LocalRank) -> LocalRank:
        assert self.write(local, self.step(local)) is None
        return local


@pytest.fixture
def desk() -> Desk:
    return Desk()


def rank(
    dp: int = 0, launch: str = "launch", *, port: int = 9, epoch: int = 0, topology: Topology = TWO_RANKS
) -> LocalRank:
    info = InstanceInfo("", launch, ("h:1",), topology, "round_robin")
    return LocalRank("p", Rank(dp), info, RankEndpoint(Rank(dp), "10.0.0.1", port), epoch)


def test_the_first_announcer_names_the_start_when_nothing_is_there(desk: Desk) -> None:
    local = desk.claim(rank())
    assert (local.incarnation, local.key_epoch, local.lease_id) == ("start-1", desk.etcd.revision, desk.lease)
    info = InstanceInfo.from_json(desk.etcd.keys[INFO_KEY].value)
    assert info is not None and info.incarnation == "start-1"


def test_another_rank_joins_the_start_when_its_launch_is_the_same(desk: Desk) -> None:
    desk.claim(rank(0))
    desk.claims = Claims(KEYS, lambda: "start-2")
    assert desk.claim(rank(1)).incarnation == "start-1"


@pytest.mark.parametrize("joins", [False, True])
def test_a_start_keeps_its_age_when_its_key_is_lost_and_written_again(desk: Desk, joins: bool) -> None:
    first, other = desk.claim(rank(0)), rank(1)
    began = desk.etcd.keys[INFO_KEY].create_revision
    local = desk.claim(other) if joins else first
    for _ in range(2):
        desk.etcd.revoke(desk.lease)
        desk.lease = desk.etcd.grant(5).lease_id
        desk.claim(local)
        info = InstanceInfo.from_json(desk.etcd.keys[INFO_KEY].value)
        assert info is not None and (info.incarnation, info.began) == ("start-1", began)


def test_a_start_begins_anew_when_etcd_has_another_history(desk: Desk) -> None:
    """A revision of the history before says nothing beside those of this one."""
    local = desk.claim(rank())
    desk.etcd.revoke(desk.lease)
    desk.lease = desk.etcd.grant(5).lease_id
    local.renounce()
    desk.claim(local)
    info = InstanceInfo.from_json(desk.etcd.keys[INFO_KEY].value)
    assert info is not None and info.began == 0


def test_a_claim_keeps_its_epoch_when_its_key_stands_already(desk: Desk) -> None:
    local = desk.claim(rank())
    epoch = local.key_epoch
    desk.claim(local)
    assert local.key_epoch == epoch == desk.etcd.keys[RANK_KEY].create_revision


def test_a_new_agent_takes_over_when_the_engine_names_its_key(desk: Desk) -> None:
    epoch = desk.claim(rank()).key_epoch
    desk.lease = desk.etcd.grant(5).lease_id
    assert desk.claim(rank(epoch=epoch)).key_epoch == epoch
    assert desk.etcd.keys[RANK_KEY].lease == desk.lease


def test_a_claim_is_blocked_when_another_process_has_the_rank(desk: Desk) -> None:
    desk.claim(rank())
    assert desk.step(rank(port=10)) == Blocked("another process as rank 0", desk.lease)


def test_a_claim_is_blocked_when_ranks_of_an_earlier_start_are_left(desk: Desk) -> None:
    desk.claim(rank(1))
    desk.etcd.txn([], [Delete(INFO_KEY)])
    desk.claims = Claims(KEYS, lambda: "start-2")
    assert desk.step(rank(0, "another")) == Blocked("ranks of an earlier start", desk.lease)


def test_a_claim_is_blocked_when_another_launch_has_the_name(desk: Desk) -> None:
    desk.claim(rank())
    assert desk.step(rank(1, "another")) == Blocked("launch launch", desk.lease)


def test_waiting_is_pointless_when_the_same_launch_has_another_topology(desk: Desk) -> None:
    desk.claim(rank())
    with pytest.raises(InstanceConflict, match="another topology"):
        desk.step(rank(1, topology=Topology(dp=4)))


@pytest.mark.parametrize("value", [b"garbage", None], ids=["garbage", "ended"])
def test_a_leftover_is_cleared_when_no_rank_stands_under_it(desk: Desk, value: bytes | None) -> None:
    ended = InstanceInfo("old", "launch", (), Topology(dp=2), "round_robin", state=ENDED).to_json()
    desk.etcd.txn([], [Put(INFO_KEY, value or ended, 0)])
    local = rank()
    step = desk.step(local)
    assert isinstance(step, Write) and step.endpoint is None
    assert desk.write(local, step) == Blocked("an instance that has just ended")
    assert desk.claim(local).incarnation == "start-1"


def test_nothing_is_written_when_another_start_was_faster(desk: Desk) -> None:
    local, rival = rank(0), rank(1)
    step = desk.step(local)
    desk.claim(rival)
    assert desk.write(local, step) == Blocked("a start that raced with this one")
    assert (local.key_epoch, local.incarnation) == (0, "")
    assert desk.claim(local).incarnation == rival.incarnation


def test_a_claim_is_recognised_when_its_answer_was_lost(desk: Desk) -> None:
    local = rank()
    step = desk.step(local)
    assert isinstance(step, Write)
    assert desk.etcd.txn(step.conditions, step.operations).succeeded  # and nobody says so
    created = desk.etcd.revision
    assert desk.claim(local).key_epoch == created


def test_a_claim_is_not_recognised_when_the_key_is_anothers(desk: Desk) -> None:
    local = rank()
    desk.step(local)
    desk.claim(rank(port=10))
    assert desk.step(local) == Blocked("another process as rank 0", desk.etcd.keys[RANK_KEY].lease)


def test_a_withdrawal_deletes_nothing_when_another_agent_has_taken_the_rank_over(desk: Desk) -> None:
    local = desk.claim(rank())
    desk.lease = desk.etcd.grant(5).lease_id
    desk.claim(rank(epoch=local.key_epoch))
    assert not withdraw(desk, local).succeeded
    assert RANK_KEY in desk.etcd.keys


def test_an_old_agent_does_not_take_a_rank_back_when_another_has_it(desk: Desk) -> None:
    local, lease = desk.claim(rank()), desk.lease
    desk.lease = desk.etcd.grant(5).lease_id
    desk.claim(rank(epoch=local.key_epoch))
    desk.lease = lease
    assert desk.step(local) == Blocked("another process as rank 0", desk.etcd.keys[RANK_KEY].lease)


def test_an_instance_says_that_it_has_ended_when_its_last_rank_leaves(desk: Desk) -> None:
    local = desk.claim(rank())
    withdraw(desk, local)
    states = []
    for transaction in desk.claims.end_instance(local, desk.etcd.keys.get(INFO_KEY)):
        assert desk.etcd.txn(*transaction).succeeded
        kv = desk.etcd.keys.get(INFO_KEY)
        info = InstanceInfo.from_json(kv.value) if kv else None
        states.append(info.state if info else "gone")
    assert states == [ENDED, "gone"]


def test_an_instance_stays_when_a_rank_of_it_stands(desk: Desk) -> None:
    local = desk.claim(rank(0))
    desk.claim(rank(1))
    withdraw(desk, local)
    for transaction in desk.claims.end_instance(local, desk.etcd.keys[INFO_KEY]):
        assert not desk.etcd.txn(*transaction).succeeded


def test_another_starts_instance_is_not_ended_when_a_rank_leaves_late(desk: Desk) -> None:
    local = desk.claim(rank())
    info = InstanceInfo("start-2", "launch", (), Topology(dp=2), "round_robin")
    desk.etcd.txn([], [Put(INFO_KEY, info.to_json(), 0)])
    assert list(desk.claims.end_instance(local, desk.etcd.keys[INFO_KEY])) == []


@pytest.mark.parametrize(("another_cluster", "ahead"), [(0, 1), (1, 0)])
def test_a_key_is_left_to_its_lease_when_a_restore_brought_it_back(
    desk: Desk, another_cluster: int, ahead: int
) -> None:
    before, former = desk.claim(rank()).key_epoch, desk.lease
    desk.lease = desk.etcd.grant(5).lease_id
    local = rank(epoch=before)
    local.seen = Header(desk.etcd.header.cluster_id + another_cluster, desk.etcd.revision + ahead)
    assert desk.step(local) == Blocked("another process as rank 0", former)
    desk.etcd.revoke(former)
    assert desk.claim(local).key_epoch > before
    assert local.seen is None


def test_a_key_is_taken_over_when_its_engine_has_seen_the_same_etcd(desk: Desk) -> None:
    before = desk.claim(rank()).key_epoch
    desk.lease = desk.etcd.grant(5).lease_id
    local = rank(epoch=before)
    local.seen = desk.listing().header
    assert desk.claim(local).key_epoch == before


def test_an_unsure_claim_is_not_looked_for_when_etcd_has_another_history(desk: Desk) -> None:
    local = rank()
    local.unsure_since = 1000
    local.renounce()
    step = desk.step(local)
    assert isinstance(step, Write)
    desk.etcd.txn(step.conditions, step.operations)  # its answer is lost
    desk.claim(local)
    assert local.key_epoch == desk.etcd.keys[RANK_KEY].create_revision


def test_a_cut_off_claim_is_withdrawn_when_it_was_written(desk: Desk) -> None:
    local = rank()
    step = desk.step(local)
    assert isinstance(step, Write)
    desk.etcd.txn(step.conditions, step.operations)
    desk.claims.recover(local, desk.etcd.read([RANK_KEY]), desk.lease)
    assert withdraw(desk, local).succeeded
    assert RANK_KEY not in desk.etcd.keys


def test_a_cut_off_claim_has_written_nothing_when_the_key_has_its_number_in_another_history(desk: Desk) -> None:
    other = desk.claim(rank(port=10))
    local = rank(epoch=other.key_epoch)
    local.seen = Header(desk.etcd.header.cluster_id + 1, 1)
    desk.claims.recover(local, desk.etcd.read([RANK_KEY]), desk.lease)
    assert local.key_epoch == 0, "nothing is withdrawn"


def test_a_key_is_not_taken_over_when_its_engine_has_outlived_the_history(desk: Desk) -> None:
    before, former = desk.claim(rank()).key_epoch, desk.lease
    desk.lease = desk.etcd.grant(5).lease_id
    local = rank(epoch=before)
    local.seen = Header(desk.etcd.header.cluster_id, desk.etcd.revision)
    local.outlive()
    assert desk.step(local) == Blocked("another process as rank 0", former)


def withdraw(desk: Desk, local: LocalRank) -> TxnResult:
    return desk.etcd.txn(*desk.claims.withdraw(local))
