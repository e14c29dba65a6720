"""The view: which rank a room is on, as long as that is true, and which waits an event ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from etcd_pd.core.keys import Keys
from etcd_pd.core.notices import AgentSpoke, InstanceChanged, Notice, Resolved, Wait, WaitFailed, WaitLost
from etcd_pd.core.records import Compare, Delete, Put
from etcd_pd.core.view import View
from etcd_pd.wire.values import (
    ASSIGNED,
    ENDED,
    FAILED,
    Assignment,
    InstanceInfo,
    Rank,
    RankEndpoint,
    RoomValue,
    Topology,
)
from tests.support.memory_etcd import MemoryEtcd

KEYS = Keys("/cell")


class Cell:
    """A model etcd and a view that follows it."""

    def __init__(self) -> None:
        self.etcd = MemoryEtcd()
        self.view = View(KEYS)
        self.seen = 0

    # --- what the prefill side writes

    def instance(
        self,
        id: str = "p",
        topology: Topology | None = None,
        *,
        policy: str = "round_robin",
        incarnation: str = "i1",
        addresses: tuple[str, ...] = ("host:8998",),
        lease: int = 0,
        began: int = 0,
    ) -> None:
        info = InstanceInfo(incarnation, "launch", addresses, topology or Topology(dp=4), policy, began=began)
        self.put(KEYS.prefill(id), info.to_json(), lease)

    def rank(self, dp: int, id: str = "p", *, tp: int = 0, incarnation: str = "i1", lease: int = 0) -> int:
        """The epoch of its key."""
        rank = Rank(dp, 0, tp, 0)
        self.put(KEYS.rank(id, rank), RankEndpoint(rank, "10.0.0.1", 5000 + dp, incarnation).to_json(), lease)
        return self.etcd.keys[KEYS.rank(id, rank)].create_revision

    def room(self, room: int, dp: int, epoch: int, id: str = "p", *, state: str = ASSIGNED, reason: str = "") -> int:
        """Its revision."""
        return self.put(KEYS.room(id, room), RoomValue(dp, epoch, state, reason).to_json())

    def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        return self.etcd.txn([], [Put(key, value, lease)]).header.revision

    def delete(self, *keys: bytes) -> int:
        return self.etcd.txn([], [Delete(key) for key in keys]).header.revision

    # --- what the view makes of it

    def follow(self) -> list[Notice]:
        """Apply every revision since the last time; what that ended or resolved."""
        notices: list[Notice] = []
        for events in self.etcd.events(KEYS.prefix, self.seen + 1):
            notices += self.view.apply(events[-1].mod_revision, events)
        self.seen = self.etcd.revision
        return news(notices)

    def relist(self) -> list[Notice]:
        """Replace everything by a list."""
        listing = self.etcd.scan(KEYS.prefix)
        self.seen = listing.header.revision
        return news(self.view.relist(listing.header.revision, listing.kvs))

    def want(self, room: int, instance: str = "p", named_rank: int | None = None) -> tuple[Wait, list[Notice]]:
        """Wait for a room since long ago, so that it is sure for which start of its instance."""
        wait = Wait(object(), 1, instance, room, named_rank)
        notices = news(self.view.waits.want(wait))
        self.view.waits.pin(0.0)
        return wait, notices


def news(notices: Iterable[Notice]) -> list[Notice]:
    return [notice for notice in notices if not isinstance(notice, (InstanceChanged, AgentSpoke))]


def is_at_rest(view: View) -> bool:
    """Nothing is kept for any wait."""
    return not (view.waits._unplaced or view.waits._pending or view.waits._for_rank or view.waits._assigned)


@pytest.fixture
def cell() -> Cell:
    """Instance p with DP ranks 0..3 alive."""
    cell = Cell()
    cell.instance()
    for dp in range(4):
        cell.rank(dp)
    cell.follow()
    return cell


def epoch_of(cell: Cell, dp: int) -> int:
    return cell.view.epoch("p", dp)


class TestRegistry:
    def test_a_wait_resolves_when_the_room_is_registered(self, cell: Cell) -> None:
        wait, first = cell.want(77)
        assert first == []
        epoch = epoch_of(cell, 2)
        revision = cell.room(77, 2, epoch)
        assert cell.follow() == [Resolved(wait, Assignment("p", 77, 2, epoch, revision, 0, "registry"))]

    def test_a_room_that_is_there_already_resolves_at_its_own_revision(self, cell: Cell) -> None:
        revision = cell.room(77, 2, epoch_of(cell, 2))
        cell.room(78, 1, epoch_of(cell, 1))
        cell.follow()
        wait, notices = cell.want(77)
        assert notices == [Resolved(wait, Assignment("p", 77, 2, epoch_of(cell, 2), revision, 0, "registry"))]

    def test_the_lease_is_in_the_answer_when_a_room_resolves(self, cell: Cell) -> None:
        lease = cell.etcd.grant(60).lease_id
        cell.put(KEYS.room("p", 5), RoomValue(0, epoch_of(cell, 0)).to_json(), lease)
        cell.follow()
        _, [notice] = cell.want(5)
        assert isinstance(notice, Resolved) and notice.assignment.lease_id == lease

    def test_two_waits_for_one_room_are_both_answered(self, cell: Cell) -> None:
        waits = {cell.want(77)[0], cell.want(77)[0]}
        cell.room(77, 2, epoch_of(cell, 2))
        assert {notice.wait for notice in cell.follow() if isinstance(notice, Resolved)} == waits

    def test_a_failed_room_fails_the_wait_with_its_reason(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        revision = cell.room(77, 2, epoch_of(cell, 2), state=FAILED, reason="out of memory")
        arrived = Assignment("p", 77, 2, epoch_of(cell, 2), revision, 0, "registry")
        assert cell.follow() == [WaitFailed(wait, "out of memory", revision, arrived)]

    def test_a_wait_gets_what_the_room_was_before_when_it_comes_after_the_failure(self, cell: Cell) -> None:
        """So that all ranks of a decode group can say what was when, whenever they began to wait."""
        epoch = epoch_of(cell, 2)
        registered = cell.room(77, 2, epoch)
        failed = cell.room(77, 2, epoch, state=FAILED, reason="r")
        cell.follow()
        wait, notices = cell.want(77)
        arrived = Assignment("p", 77, 2, epoch, registered, 0, "registry")
        assert notices == [WaitFailed(wait, "r", failed, arrived)]

    def test_a_wait_gets_the_revision_of_the_loss_when_it_comes_after_it(self, cell: Cell) -> None:
        epoch = epoch_of(cell, 2)
        registered = cell.room(77, 2, epoch)
        lost = cell.delete(KEYS.rank("p", Rank(2)))
        cell.room(78, 1, epoch_of(cell, 1))
        cell.follow()
        wait, notices = cell.want(77)
        assert notices == [WaitLost(wait, 2, epoch, lost, Assignment("p", 77, 2, epoch, registered, 0, "registry"))]

    def test_a_loss_from_before_the_list_is_dated_at_the_list(self, cell: Cell) -> None:
        epoch = epoch_of(cell, 2)
        cell.room(77, 2, epoch)
        cell.delete(KEYS.rank("p", Rank(2)))
        cell.room(78, 1, epoch_of(cell, 1))
        cell.relist()
        assert cell.view.floor == cell.etcd.revision
        _, [notice] = cell.want(77)
        assert isinstance(notice, WaitLost) and notice.revision == cell.view.floor

    def test_a_room_that_fails_later_fails_waits_that_were_answered(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        other, _ = cell.want(78)
        cell.room(77, 2, epoch_of(cell, 2))
        cell.room(78, 2, epoch_of(cell, 2))
        cell.follow()
        revision = cell.room(77, 2, epoch_of(cell, 2), state=FAILED, reason="r")
        assert cell.follow() == [WaitFailed(wait, "r", revision)]
        assert wait.ended and not other.ended

    def test_a_released_room_ends_no_wait(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        cell.room(77, 2, epoch_of(cell, 2))
        cell.follow()
        cell.delete(KEYS.room("p", 77))
        assert cell.follow() == []
        assert not wait.ended

    def test_the_same_room_of_another_instance_is_another_room(self, cell: Cell) -> None:
        cell.instance("q", addresses=())
        epoch = cell.rank(0, "q")
        cell.want(77)
        cell.room(77, 0, epoch, "q")
        assert cell.follow() == []


class TestEpochs:
    def test_a_room_of_a_dead_epoch_is_lost_not_assigned(self, cell: Cell) -> None:
        old = epoch_of(cell, 2)
        cell.room(77, 2, old)
        cell.delete(KEYS.rank("p", Rank(2)))
        new = cell.rank(2)
        cell.follow()
        assert epoch_of(cell, 2) == new != old
        wait, [notice] = cell.want(77)
        assert isinstance(notice, WaitLost)
        assert (notice.wait, notice.dp_rank, notice.epoch) == (wait, 2, old)

    def test_losing_a_rank_loses_its_waits_and_no_others(self, cell: Cell) -> None:
        waits = [cell.want(room)[0] for room in (10, 11, 12)]
        for wait, dp in zip(waits, (1, 2, 2), strict=True):
            cell.room(wait.room, dp, epoch_of(cell, dp))
        cell.follow()
        epoch = epoch_of(cell, 2)
        revision = cell.delete(KEYS.rank("p", Rank(2)))
        lost = cell.follow()
        assert {notice.wait for notice in lost if isinstance(notice, WaitLost)} == set(waits[1:])
        assert all(n == WaitLost(n.wait, 2, epoch, revision) for n in lost if isinstance(n, WaitLost))
        assert not waits[0].ended

    def test_lost_is_final_even_when_the_rank_comes_back(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        cell.room(77, 2, epoch_of(cell, 2))
        cell.follow()
        cell.delete(KEYS.rank("p", Rank(2)))
        assert len(cell.follow()) == 1
        epoch = cell.rank(2)
        cell.delete(KEYS.room("p", 77))
        cell.room(77, 2, epoch)
        assert cell.follow() == []
        assert wait.ended

    def test_waits_for_unregistered_rooms_survive_the_loss_of_one_rank(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        cell.delete(KEYS.rank("p", Rank(2)))
        assert cell.follow() == []
        cell.room(77, 1, epoch_of(cell, 1))
        assert [type(notice) for notice in cell.follow()] == [Resolved]
        assert not wait.ended

    def test_a_room_taken_over_resolves_to_its_new_owner(self, cell: Cell) -> None:
        cell.room(77, 2, epoch_of(cell, 2))
        cell.delete(KEYS.rank("p", Rank(2)))
        cell.delete(KEYS.room("p", 77))
        revision = cell.room(77, 3, epoch_of(cell, 3))
        cell.follow()
        wait, notices = cell.want(77)
        assert notices == [Resolved(wait, Assignment("p", 77, 3, epoch_of(cell, 3), revision, 0, "registry"))]

    def vanish(self, cell: Cell) -> None:
        """All keys go, as with the lease of their agent's session."""
        cell.delete(KEYS.prefill("p"), *(KEYS.rank("p", Rank(dp)) for dp in range(4)))

    def test_waits_that_were_answered_are_lost_and_others_go_on_when_the_instance_vanishes(self, cell: Cell) -> None:
        assigned, _ = cell.want(77)
        pending, _ = cell.want(78, "host:8998")
        cell.room(77, 2, epoch_of(cell, 2))
        cell.follow()
        self.vanish(cell)
        ends = {n.wait: n.dp_rank for n in cell.follow() if isinstance(n, WaitLost)}
        assert ends == {assigned: 2}
        assert cell.view.waits.is_unplaced(pending)

    @pytest.mark.parametrize("listed", [False, True])
    @pytest.mark.parametrize("named", [None, 1])
    def test_a_wait_is_answered_when_the_same_start_of_its_instance_comes_back(
        self, cell: Cell, named: int | None, listed: bool
    ) -> None:
        epoch = cell.etcd.keys[KEYS.rank("p", Rank(1))].create_revision
        wait, _ = cell.want(77, named_rank=named)
        if named is not None:
            cell.view.waits.forget(wait)
            cell.delete(KEYS.rank("p", Rank(1)))
            cell.follow()
            wait, _ = cell.want(77, named_rank=named)
        self.vanish(cell)
        if not listed:
            assert cell.follow() == []
        cell.instance()
        again = cell.rank(1)
        assert again != epoch
        if named is None:
            cell.room(77, 1, again)
        [notice] = cell.relist() if listed else cell.follow()
        assert isinstance(notice, Resolved) and notice.wait is wait
        assert (notice.assignment.dp_rank, notice.assignment.epoch) == (1, again)

    @pytest.mark.parametrize("state", [ASSIGNED, FAILED])
    def test_a_wait_gets_the_next_life_of_its_room_when_it_is_done_with_this_one(self, cell: Cell, state: str) -> None:
        seen = cell.room(77, 2, epoch_of(cell, 2), state=state)
        cell.follow()
        wait = Wait(object(), 1, "p", 77)
        wait.beyond = seen
        assert cell.view.waits.want(wait) == []
        assert cell.relist() == []
        cell.delete(KEYS.room("p", 77))
        assert cell.follow() == []
        revision = cell.room(77, 1, epoch_of(cell, 1))
        [resolved] = cell.follow()
        assert resolved == Resolved(wait, Assignment("p", 77, 1, epoch_of(cell, 1), revision, 0, "registry"))

    def test_a_named_wait_is_not_ended_when_an_earlier_life_of_its_room_failed(self, cell: Cell) -> None:
        seen = cell.room(77, 2, epoch_of(cell, 2), state=FAILED)
        cell.follow()
        wait = Wait(object(), 1, "p", 77, 2)
        wait.beyond = seen
        [resolved] = cell.view.waits.want(wait)
        assert isinstance(resolved, Resolved)

    def test_a_wait_is_answered_by_what_stands_when_its_revisions_were_of_another_history(self, cell: Cell) -> None:
        revision = cell.room(77, 2, epoch_of(cell, 2))
        cell.follow()
        wait = Wait(object(), 1, "p", 77)
        wait.beyond = revision + 100
        assert cell.view.waits.want(wait) == []
        [resolved] = cell.view.waits.disown([wait], revision)
        assert isinstance(resolved, Resolved) and resolved.assignment.dp_rank == 2

    @pytest.mark.parametrize("listed", [False, True])
    @pytest.mark.parametrize(("left", "withdrawn"), [("agent", True), ("another", False), ("nobody", False)])
    def test_a_rank_is_withdrawn_when_its_key_went_and_the_lease_of_its_agent_stands(
        self, left: str, withdrawn: bool, listed: bool
    ) -> None:
        cell = Cell()
        session, other = (cell.etcd.grant(60).lease_id for _ in range(2))
        cell.instance(lease=other)
        cell.put(KEYS.agent("a"), b"{}", session)
        epoch = cell.rank(2, lease=session)
        cell.follow()
        wait, _ = cell.want(77)
        cell.room(77, 2, epoch)
        cell.follow()
        if left == "agent":
            cell.delete(KEYS.rank("p", Rank(2)))
        else:
            cell.etcd.revoke(session)
        if left == "another":  # the agent has a session again before anybody looks
            cell.put(KEYS.agent("a"), b"{}", other)
        [lost] = cell.relist() if listed else cell.follow()
        assert isinstance(lost, WaitLost)
        assert (lost.wait, lost.dp_rank, lost.epoch, lost.withdrawn) == (wait, 2, epoch, withdrawn)
        assert cell.view.end_of("p", 2, epoch).withdrawn is withdrawn

    def test_no_rank_is_withdrawn_when_etcd_has_another_history(self, cell: Cell) -> None:
        session = cell.etcd.grant(60).lease_id
        cell.put(KEYS.agent("a"), b"{}", session)
        wait, _ = cell.want(77)
        cell.room(77, 1, cell.rank(1, lease=session))
        cell.follow()
        [lost] = news(cell.view.void(0))
        assert isinstance(lost, WaitLost) and lost.wait is wait and not lost.withdrawn

    def test_a_wait_is_lost_when_another_start_has_the_name_of_the_one_that_vanished(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        self.vanish(cell)
        assert cell.follow() == []
        cell.instance(incarnation="i2")
        [notice] = cell.follow()
        assert notice[:3] == (wait, -1, 0)
        assert is_at_rest(cell.view)

    def test_a_wait_is_lost_when_its_instance_vanishes_and_another_has_its_address(self, cell: Cell) -> None:
        by_address, _ = cell.want(77, "host:8998")
        by_id, _ = cell.want(77)
        cell.instance("q", incarnation="j1")
        assert cell.follow() == []
        self.vanish(cell)
        assert [n[:3] for n in cell.follow()] == [(by_address, -1, 0)]
        assert cell.view.waits.is_unplaced(by_id)

    def test_every_wait_is_lost_when_the_instance_says_that_it_has_ended(self, cell: Cell) -> None:
        wait, _ = cell.want(78)
        cell.delete(*(KEYS.rank("p", Rank(dp)) for dp in range(4)))
        assert cell.follow() == []
        info = InstanceInfo("i1", "launch", ("host:8998",), Topology(dp=4), "round_robin", state=ENDED)
        revision = cell.put(KEYS.prefill("p"), info.to_json())
        assert cell.follow() == [WaitLost(wait, -1, 0, revision, withdrawn=True)]
        assert cell.view.find("p") is None and cell.view.find("host:8998") is None
        cell.delete(KEYS.prefill("p"))
        assert cell.follow() == [] and cell.view.instances == {}

    def test_another_start_of_the_instance_loses_the_waits_of_the_first(self, cell: Cell) -> None:
        pending, _ = cell.want(78)
        cell.delete(KEYS.prefill("p"), *(KEYS.rank("p", Rank(dp)) for dp in range(4)))
        cell.instance(incarnation="i2")
        cell.rank(0, incarnation="i2")
        assert [n.wait for n in cell.relist() if isinstance(n, WaitLost)] == [pending]

    def test_the_last_word_of_an_instance_stands_while_its_ranks_live(self, cell: Cell) -> None:
        wait, _ = cell.want(77)
        cell.delete(KEYS.prefill("p"))
        assert cell.follow() == []
        cell.room(77, 1, epoch_of(cell, 1))
        assert [type(notice) for notice in cell.follow()] == [Resolved]
        assert not wait.ended

    def test_ranks_of_another_start_do_not_count(self, cell: Cell) -> None:
        cell.instance("q", Topology(dp=2), addresses=(), incarnation="new")
        cell.rank(0, "q", incarnation="old")
        cell.follow()
        assert cell.view.epoch("q", 0) == 0
        found = cell.view.instance("q")
        assert found is not None and found.ranks == ()


class TestAnotherHistory:
    def test_what_was_answered_is_lost_and_what_was_not_goes_on(self, cell: Cell) -> None:
        """etcd was restored or built anew, and the engines announce themselves again."""
        cell.room(7, 2, epoch_of(cell, 2))
        cell.follow()
        (answered, _), (waiting, _), (named, _) = cell.want(7), cell.want(8), cell.want(9, "host:8998", named_rank=9)
        old = epoch_of(cell, 2)
        assert news(cell.view.void(0)) == [WaitLost(answered, 2, old, 0)]
        cell.etcd = MemoryEtcd()
        assert cell.relist() == []
        cell.instance(topology=Topology(dp=10), incarnation="i2")
        epoch, other = cell.rank(2, incarnation="i2"), cell.rank(9, incarnation="i2")
        revision = cell.room(8, 2, epoch)
        assert cell.follow() == [
            Resolved(named, Assignment("p", 9, 9, other, other, 0, "named")),
            Resolved(waiting, Assignment("p", 8, 2, epoch, revision, 0, "registry")),
        ]

    def test_a_rank_that_a_restore_brought_back_is_dead_until_its_process_says_otherwise(self, cell: Cell) -> None:
        """Whoever gets PrefillLost of an epoch is not given it again because a snapshot holds its key."""
        epoch = epoch_of(cell, 2)
        cell.room(7, 2, epoch)
        cell.follow()
        cell.view.void(0)
        assert cell.relist() == []
        assert epoch_of(cell, 2) == 0
        wait, [notice] = cell.want(7)
        assert isinstance(notice, WaitLost) and notice.epoch == epoch
        cell.relist()
        assert epoch_of(cell, 2) == 0, "nor by the next list"
        assert cell.view.is_dead("p", 2, epoch) is None, "its process may not know yet: no room of it may be taken over"
        cell.rank(2)
        cell.follow()
        assert epoch_of(cell, 2) == epoch, "its own process has not seen another history"
        assert cell.view.is_dead("p", 2, epoch) is False

    @pytest.mark.parametrize("name", ["p", "q"])
    def test_a_wait_is_answered_at_a_lower_revision_when_the_history_is_another(self, cell: Cell, name: str) -> None:
        """What its process was done with before was another history's."""
        for _ in range(50):
            done = cell.put(b"/other", b"")
        cell.follow()
        wait = ask(cell, beyond=done, instance=name)
        cell.etcd = MemoryEtcd(cluster_id=2)
        cell.view.void(0)
        cell.instance(name, incarnation="i2")
        epoch = cell.rank(2, name, incarnation="i2")
        revision = cell.room(7, 2, epoch, name)
        assert cell.relist() == [Resolved(wait, Assignment(name, 7, 2, epoch, revision, 0, "registry"))]

    def test_it_is_so_after_another_restore_too(self, cell: Cell) -> None:
        for _ in range(2):
            cell.view.void(0)
            cell.relist()
        assert epoch_of(cell, 2) == 0
        assert cell.view.history == 2, "so that its guards are not those of an earlier history"

    def test_a_rank_that_came_back_by_itself_lives(self, cell: Cell) -> None:
        old = epoch_of(cell, 2)
        cell.view.void(0)
        cell.delete(KEYS.rank("p", Rank(2)))
        new = cell.rank(2)
        cell.relist()
        assert epoch_of(cell, 2) == new != old
        assert cell.view.is_dead("p", 2, old) and not cell.view.is_dead("p", 2, new)

    def test_what_a_restore_did_not_bring_back_is_dead(self, cell: Cell) -> None:
        old = epoch_of(cell, 2)
        cell.view.void(0)
        cell.delete(KEYS.rank("p", Rank(2)))
        cell.relist()
        assert cell.view.is_dead("p", 2, old)


class TestSeveralProcessesPerRank:
    @pytest.fixture
    def cell(self) -> Cell:
        cell = Cell()
        cell.instance(topology=Topology(dp=2, tp=2))
        return cell

    def test_it_lives_when_all_of_them_do_and_the_youngest_gives_the_epoch(self, cell: Cell) -> None:
        first = cell.rank(0, tp=1)
        cell.follow()
        assert epoch_of(cell, 0) == 0
        second = cell.rank(0, tp=0)
        cell.follow()
        assert epoch_of(cell, 0) == second > first
        found = cell.view.instance("p")
        assert found is not None
        assert [endpoint.rank for endpoint in found.endpoints(0)] == [Rank(0, 0, 0, 0), Rank(0, 0, 1, 0)]

    def test_it_lives_in_the_youngest_when_a_restore_brought_the_others_back(self, cell: Cell) -> None:
        old = max(cell.rank(0, tp=tp) for tp in (0, 1))
        cell.follow()
        cell.view.void(0)
        cell.relist()
        assert epoch_of(cell, 0) == 0
        cell.delete(KEYS.rank("p", Rank(0)))
        new = cell.rank(0, tp=0)
        cell.follow()
        assert epoch_of(cell, 0) == new > old, "an agent that never saw the old history registers rooms under it"
        cell.relist()
        assert epoch_of(cell, 0) == new

    def test_losing_one_of_them_loses_that_rank_alone(self, cell: Cell) -> None:
        for dp in (0, 1):
            cell.rank(dp, tp=0)
            cell.rank(dp, tp=1)
        cell.follow()
        first, _ = cell.want(1)
        second, _ = cell.want(2)
        cell.room(1, 0, epoch_of(cell, 0))
        cell.room(2, 1, epoch_of(cell, 1))
        cell.follow()
        cell.delete(KEYS.rank("p", Rank(0, 0, 1, 0)))
        assert [notice.wait for notice in cell.follow() if isinstance(notice, WaitLost)] == [first]
        assert not second.ended

    def test_a_list_that_shows_both_anew_gives_one_answer(self, cell: Cell) -> None:
        """Concluding after each key would resolve the wait under an epoch that never was."""
        cell.rank(0, tp=1)
        cell.follow()
        wait, _ = cell.want(5, named_rank=0)
        cell.delete(KEYS.rank("p", Rank(0, 0, 1, 0)))
        cell.rank(0, tp=0)
        epoch = cell.rank(0, tp=1)
        assert cell.relist() == [Resolved(wait, Assignment("p", 5, 0, epoch, epoch, 0, "named"))]


class TestLadder:
    def test_a_rank_named_on_the_request_wins_over_everything(self, cell: Cell) -> None:
        cell.room(77, 2, epoch_of(cell, 2))
        cell.follow()
        wait, notices = cell.want(77, named_rank=3)
        epoch = epoch_of(cell, 3)
        assert notices == [Resolved(wait, Assignment("p", 77, 3, epoch, epoch, 0, "named"))]

    def test_a_single_rank_needs_no_registry(self) -> None:
        cell = Cell()
        cell.instance(topology=Topology(dp=1))
        epoch = cell.rank(0)
        cell.follow()
        wait, notices = cell.want(12345)
        assert notices == [Resolved(wait, Assignment("p", 12345, 0, epoch, epoch, 0, "single-rank"))]

    @pytest.mark.parametrize("room", [0, 1, 6, 2**63 - 1])
    def test_follow_bootstrap_room_is_the_remainder(self, room: int) -> None:
        cell = Cell()
        cell.instance(policy="follow_bootstrap_room")
        epochs = [cell.rank(dp) for dp in range(4)]
        cell.follow()
        wait, notices = cell.want(room)
        epoch = epochs[room % 4]
        expected = Assignment("p", room, room % 4, epoch, epoch, 0, "follow-bootstrap-room")
        assert notices == [Resolved(wait, expected)]

    @pytest.mark.parametrize(
        ("topology", "policy", "named", "source"),
        [
            (Topology(dp=1), "round_robin", None, "single-rank"),
            (Topology(dp=2), "follow_bootstrap_room", None, "follow-bootstrap-room"),
            (Topology(dp=2), "round_robin", 0, "named"),
            (Topology(dp=1), "round_robin", 0, "named"),
        ],
    )
    def test_a_computed_rank_is_answered_once_it_lives(
        self, topology: Topology, policy: str, named: int | None, source: str
    ) -> None:
        cell = Cell()
        cell.instance(topology=topology, policy=policy)
        cell.follow()
        wait, notices = cell.want(4, named_rank=named)
        assert notices == []
        epoch = cell.rank(0)
        assert cell.follow() == [Resolved(wait, Assignment("p", 4, 0, epoch, epoch, 0, source))]

    def test_a_computed_answer_is_lost_with_its_rank(self, cell: Cell) -> None:
        wait, _ = cell.want(77, named_rank=1)
        cell.delete(KEYS.rank("p", Rank(1)))
        cell.rank(1)
        assert [notice.wait for notice in cell.follow() if isinstance(notice, WaitLost)] == [wait]

    @pytest.mark.parametrize("before", [True, False])
    def test_a_room_failed_by_a_computed_rank_fails_the_wait(self, cell: Cell, before: bool) -> None:
        """Also one that begins after the failure: two ranks of a decode group must hear the same."""
        notices: list[Notice] = []
        if not before:
            wait, _ = cell.want(77, named_rank=1)
        revision = cell.room(77, 1, epoch_of(cell, 1), state=FAILED, reason="aborted")
        notices += cell.follow()
        if before:
            wait, notices = cell.want(77, named_rank=1)
        [notice] = notices
        assert notice[:3] == (wait, "aborted", revision)

    @pytest.mark.parametrize("state", [ASSIGNED, FAILED])
    def test_a_computed_wait_ends_when_its_room_is_of_an_epoch_that_is_over(self, cell: Cell, state: str) -> None:
        epoch = epoch_of(cell, 1)
        cell.room(77, 1, epoch, state=state, reason="aborted" if state == FAILED else "")
        gone = cell.delete(KEYS.rank("p", Rank(1)))
        cell.follow()
        early, notices = cell.want(77, named_rank=1)
        cell.rank(1)
        cell.follow()
        late, more = cell.want(77, named_rank=1)
        for wait, [notice] in ((early, notices), (late, more)):
            if state == FAILED:
                assert isinstance(notice, WaitFailed) and notice[:2] == (wait, "aborted")
            else:
                assert isinstance(notice, WaitLost) and notice[:4] == (wait, 1, epoch, gone)
            assert notice.arrived == Assignment("p", 77, 1, epoch, epoch, 0, "named")
        assert is_at_rest(cell.view)

    def test_a_computed_wait_goes_on_when_its_room_is_another_rank_s(self, cell: Cell) -> None:
        cell.room(77, 2, epoch_of(cell, 2), state=FAILED, reason="aborted")
        cell.follow()
        wait, [notice] = cell.want(77, named_rank=1)
        assert isinstance(notice, Resolved) and notice.wait is wait


class TestNames:
    def test_an_instance_is_found_by_id_and_by_address(self, cell: Cell) -> None:
        assert cell.view.find("p") == cell.view.find("host:8998") == "p"
        assert cell.view.find("elsewhere:1") is None

    def test_a_wait_for_an_unknown_instance_is_placed_when_it_appears(self) -> None:
        cell = Cell()
        by_id, _ = cell.want(7)
        by_address, _ = cell.want(7, "host:8998")
        assert cell.view.waits.is_unplaced(by_id) and cell.view.waits.is_unplaced(by_address)
        cell.instance()
        epoch = cell.rank(2)
        cell.room(7, 2, epoch)
        notices = cell.follow()
        assert {n.wait for n in notices if isinstance(n, Resolved)} == {by_id, by_address}
        assert not cell.view.waits.is_unplaced(by_id)

    def test_a_room_written_before_its_instance_was_known_is_found(self) -> None:
        cell = Cell()
        wait, _ = cell.want(7)
        cell.room(7, 2, 99)
        cell.instance()
        assert [type(notice) for notice in cell.follow()] == [WaitLost]
        assert wait.ended

    def test_an_address_moves_to_the_youngest_that_claims_it(self, cell: Cell) -> None:
        cell.instance("q", incarnation="other")
        cell.follow()
        assert cell.view.find("host:8998") == "q"
        cell.instance("p")  # the elder says something of itself once more
        cell.follow()
        assert cell.view.find("host:8998") == "q"

    @pytest.mark.parametrize("listed", [False, True])
    def test_an_address_stays_with_the_youngest_when_the_key_of_an_older_one_is_lost_and_written_again(
        self, cell: Cell, listed: bool
    ) -> None:
        began = cell.etcd.keys[KEYS.prefill("p")].create_revision
        cell.instance("q", incarnation="other")
        cell.delete(KEYS.prefill("p"))
        cell.instance("p", began=began)
        cell.relist() if listed else cell.follow()
        assert cell.view.find("host:8998") == "q"

    def test_the_youngest_does_not_depend_on_the_order_of_a_list(self, cell: Cell) -> None:
        cell.instance("a-younger-one")
        cell.follow()
        cell.relist()
        assert cell.view.find("host:8998") == "a-younger-one"

    def test_an_address_falls_back_to_who_still_claims_it(self, cell: Cell) -> None:
        cell.instance("q")
        cell.follow()
        cell.delete(KEYS.prefill("q"))
        cell.follow()
        assert cell.view.find("host:8998") == "p"

    def test_an_address_that_is_given_up_is_unknown(self, cell: Cell) -> None:
        cell.instance(addresses=("other:1",))
        cell.follow()
        assert cell.view.find("host:8998") is None
        assert cell.view.find("other:1") == "p"


@pytest.fixture
def two() -> Cell:
    """Instance p, and the younger q, which claims its address too; of each rank 1 is there."""
    cell = Cell()
    cell.instance("p")
    cell.rank(1)
    cell.instance("q", incarnation="other")
    cell.rank(1, "q", incarnation="other")
    cell.follow()
    return cell


def ask(cell: Cell, named: int | None = None, beyond: int = 0, instance: str = "host:8998") -> Wait:
    """Wait for room 7, not sure for which start; nothing is known of it yet."""
    wait = Wait(object(), 1, instance, 7, named)
    wait.beyond = beyond
    assert cell.view.waits.want(wait) == []
    return wait


class TestTwoOfOneAddress:
    """Who waits by the address, and asked a moment ago, may mean either."""

    @pytest.mark.parametrize("owner", ["p", "q"])
    def test_a_wait_by_an_address_is_for_who_registers_the_room_when_two_claim_it(self, cell: Cell, owner: str) -> None:
        wait = Wait(object(), 1, "host:8998", 7)
        assert cell.view.waits.want(wait) == []
        cell.instance("q", incarnation="other")
        cell.rank(2, "q", incarnation="other")
        assert cell.follow() == []
        epoch = cell.view.epoch(owner, 2)
        revision = cell.room(7, 2, epoch, owner)
        assert cell.follow() == [Resolved(wait, Assignment(owner, 7, 2, epoch, revision, 0, "registry"))]

    def test_a_rank_is_the_youngest_claimant_s_when_the_one_asked_a_moment_before_does_not_have_it(self) -> None:
        cell = Cell()
        cell.instance("p", policy="follow_bootstrap_room")
        cell.follow()
        wait = Wait(object(), 1, "host:8998", 7)
        assert cell.view.waits.want(wait) == []
        cell.instance("q", policy="follow_bootstrap_room", incarnation="other")
        epoch = cell.rank(3, "q", incarnation="other")
        assert cell.follow() == [Resolved(wait, Assignment("q", 7, 3, epoch, epoch, 0, "follow-bootstrap-room"))]
        assert not cell.view.waits._for_rank

    def test_it_is_not_sure_for_which_start_a_wait_is_when_another_has_taken_its_address(self, cell: Cell) -> None:
        wait = Wait(object(), 1, "host:8998", 7)
        cell.view.waits.want(wait)
        cell.instance("q", incarnation="other")
        cell.follow()
        cell.view.waits.pin(0.0)
        assert wait.start is None
        cell.room(7, 2, cell.rank(2, "q", incarnation="other"), "q")
        assert [type(notice) for notice in cell.follow()] == [Resolved]

    def test_a_wait_is_for_who_registers_when_a_restored_etcd_has_brought_its_instance_back(self, cell: Cell) -> None:
        """It had given its address up since the backup was made."""
        cell.view.void(0)
        cell.relist()
        wait = ask(cell)
        cell.view.waits.pin(float("inf"))
        cell.instance("q", incarnation="other")
        cell.room(7, 2, cell.rank(2, "q", incarnation="other"), "q")
        assert [notice.wait for notice in cell.follow() if isinstance(notice, Resolved)] == [wait]

    def test_a_room_is_its_registrar_s_when_the_one_asked_a_moment_before_does_not_have_the_rank(self) -> None:
        cell = Cell()
        cell.instance("q", policy="follow_bootstrap_room", incarnation="other")
        cell.instance("p", policy="follow_bootstrap_room")
        cell.follow()
        wait = Wait(object(), 1, "host:8998", 7)
        assert cell.view.waits.want(wait) == []
        epoch = cell.rank(3, "q", incarnation="other")
        assert cell.follow() == [], "the older one may have begun again"
        revision = cell.room(7, 3, epoch, "q")
        assert cell.follow() == [Resolved(wait, Assignment("q", 7, 3, epoch, revision, 0, "registry"))]
        assert not cell.view.waits._for_rank

    def test_a_room_is_its_registrar_s_when_one_list_ends_the_older_one_and_has_the_younger_one_s_rank(
        self, cell: Cell
    ) -> None:
        wait = ask(cell)
        cell.instance("q", incarnation="other")
        assert cell.follow() == []
        epoch = cell.rank(2, "q", incarnation="other")
        revision = cell.room(7, 2, epoch, "q")
        cell.delete(KEYS.prefill("p"), *(KEYS.rank("p", Rank(dp)) for dp in range(4)))
        assert cell.relist() == [Resolved(wait, Assignment("q", 7, 2, epoch, revision, 0, "registry"))]

    def test_a_wait_is_the_youngest_claimant_s_when_it_began_before_the_first_list(self) -> None:
        """As one that begins a moment later is."""
        cell, one = Cell(), Topology(dp=1)
        cell.instance("p", one)
        cell.rank(0)
        cell.instance("q", one, incarnation="other")
        epoch = cell.rank(0, "q", incarnation="other")
        wait = ask(cell)
        assert cell.relist() == [Resolved(wait, Assignment("q", 7, 0, epoch, epoch, 0, "single-rank"))]

    def test_a_wait_is_not_of_a_start_that_has_ended_when_the_list_that_says_so_brought_it_to_the_next(
        self, cell: Cell
    ) -> None:
        wait = ask(cell)
        cell.instance("q", incarnation="q1")
        cell.rank(0, "q", incarnation="q1")
        cell.follow()
        cell.delete(KEYS.prefill("p"), KEYS.prefill("q"), *(KEYS.rank("p", Rank(dp)) for dp in range(4)))
        cell.delete(KEYS.rank("q", Rank(0)))
        cell.instance("q", incarnation="q2")
        cell.rank(0, "q", incarnation="q2")
        assert cell.relist() == []
        assert wait.placed == "q"
        assert cell.view.waits.take_orphans() == [], "it has never been for the start that has ended"

    def test_a_wait_by_an_address_stays_when_it_is_sure_for_which_start_it_is(self, cell: Cell) -> None:
        wait, _ = cell.want(7, "host:8998")
        by_id = Wait(object(), 1, "p", 7)
        cell.view.waits.want(by_id)
        cell.instance("q", incarnation="other")
        cell.room(7, 2, cell.rank(2, "q", incarnation="other"), "q")
        assert cell.follow() == []
        cell.room(7, 1, epoch_of(cell, 1))
        assert [n.wait for n in cell.follow() if isinstance(n, Resolved)] == [wait, by_id]

    def test_a_room_is_found_when_it_was_registered_by_the_older_one_before(self, two: Cell) -> None:
        two.room(7, 1, two.view.epoch("p", 1))
        two.follow()
        [resolved] = two.view.waits.want(Wait(object(), 1, "host:8998", 7))
        assert isinstance(resolved, Resolved) and resolved.assignment.instance == "p"

    @pytest.mark.parametrize("listed", [False, True])
    def test_a_dead_room_of_the_older_one_answers_nobody(self, two: Cell, listed: bool) -> None:
        two.room(7, 1, two.view.epoch("p", 1))
        two.delete(KEYS.rank("p", Rank(1)))
        two.follow()
        wait = ask(two)
        two.room(7, 1, two.view.epoch("q", 1), "q")
        [resolved] = two.relist() if listed else two.follow()
        assert isinstance(resolved, Resolved)
        assert (resolved.wait, resolved.assignment.instance) == (wait, "q")

    def test_a_room_of_an_earlier_life_answers_nobody(self, two: Cell) -> None:
        revision = two.room(7, 1, two.view.epoch("p", 1))
        two.follow()
        wait = ask(two, beyond=revision)
        assert two.relist() == []
        two.room(7, 1, two.view.epoch("q", 1), "q")
        [resolved] = two.follow()
        assert isinstance(resolved, Resolved)
        assert (resolved.wait, resolved.assignment.instance) == (wait, "q")

    def test_a_named_rank_is_that_one_when_another_registers_the_room(self, two: Cell) -> None:
        ask(two, named=3)
        two.room(7, 1, two.view.epoch("p", 1))
        assert two.follow() == []

    def test_each_of_two_waits_is_lost_once_when_the_one_that_has_their_room_ends_next(self, two: Cell) -> None:
        waits = [ask(two), ask(two)]
        two.room(7, 1, two.view.epoch("p", 1))
        two.instance("q", incarnation="third")
        two.rank(1, "q", incarnation="third")
        assert {n.assignment.instance for n in two.relist() if isinstance(n, Resolved)} == {"p"}
        two.delete(KEYS.rank("p", Rank(1)))
        assert [n.wait for n in two.follow() if isinstance(n, WaitLost)] == waits

    def test_a_computed_rank_is_kept_when_a_failure_of_an_earlier_life_is_read_again(self) -> None:
        cell = Cell()
        cell.instance("q", policy="follow_bootstrap_room")
        revision = cell.room(7, 3, cell.rank(3, "q"), "q", state=FAILED, reason="an old life")
        cell.follow()
        wait = Wait(object(), 1, "host:8998", 7)
        wait.beyond = revision
        assert [type(notice) for notice in cell.view.waits.want(wait)] == [Resolved]
        assert [notice for notice in cell.relist() if isinstance(notice, WaitFailed)] == []

    def test_a_wait_by_an_id_is_for_that_instance_when_another_claims_it_as_an_address(self, two: Cell) -> None:
        two.instance("host:8998", addresses=(), incarnation="third")
        two.follow()
        ask(two)
        two.room(7, 1, two.view.epoch("q", 1), "q")
        assert two.follow() == []

    def test_an_earlier_life_stays_known_when_the_wait_moves(self) -> None:
        cell = Cell()
        cell.instance("q", policy="follow_bootstrap_room", incarnation="other")
        revision = cell.room(7, 3, cell.rank(3, "q", incarnation="other"), "q", state=FAILED, reason="an old life")
        cell.instance("p", policy="follow_bootstrap_room")
        cell.delete(KEYS.prefill("q"), KEYS.rank("q", Rank(3)))
        cell.follow()
        wait = ask(cell, beyond=revision)
        cell.instance("q", policy="follow_bootstrap_room", incarnation="other")
        cell.rank(3, "q", incarnation="other")
        [resolved] = cell.follow()
        assert isinstance(resolved, Resolved) and resolved.wait is wait


class TestForget:
    @pytest.mark.parametrize("named_rank", [None, 0, 3])
    @pytest.mark.parametrize("instance", ["p", "host:8998", "nowhere"])
    @pytest.mark.parametrize("registered", [False, True])
    def test_it_leaves_no_trace(self, instance: str, named_rank: int | None, registered: bool) -> None:
        cell = Cell()
        cell.instance()
        epoch = cell.rank(0)
        if registered:
            cell.room(7, 0, epoch)
        cell.follow()
        wait, _ = cell.want(7, instance, named_rank)
        cell.view.waits.forget(wait)
        assert is_at_rest(cell.view) and not cell.view.waits._asked
        cell.view.waits.forget(wait)
        assert cell.view.waits.want(wait) is not None

    def test_it_leaves_no_trace_when_the_address_has_moved(self, cell: Cell) -> None:
        wait, _ = cell.want(7, "host:8998")
        cell.instance("q")
        cell.follow()
        cell.view.waits.forget(wait)
        assert is_at_rest(cell.view)

    def test_no_notice_is_made_when_the_wait_is_forgotten(self, cell: Cell) -> None:
        wait, _ = cell.want(7)
        cell.view.waits.forget(wait)
        cell.room(7, 0, epoch_of(cell, 0))
        assert cell.follow() == []

    def test_nothing_is_left_of_an_instance_that_went(self, cell: Cell) -> None:
        cell.room(7, 0, epoch_of(cell, 0))
        cell.follow()
        cell.delete(KEYS.prefill("p"), KEYS.room("p", 7), *(KEYS.rank("p", Rank(dp)) for dp in range(4)))
        cell.follow()
        assert cell.view.instances == {}
        assert len(cell.view.rooms) == 0
        assert cell.view.find("host:8998") is None


GARBAGE = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b"{}",
    b'{"dp_rank":"0","epoch":1,"state":"assigned"}',
    b'{"dp_rank":-1,"epoch":1,"state":"assigned"}',
    b'{"dp_rank":0,"epoch":1,"state":"married"}',
    b'{"dp_rank":true,"epoch":1,"state":"assigned"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"dp_rank":' + b"9" * 5000 + b',"epoch":1,"state":"assigned"}',
    b'{"dp_rank":0,"epoch":1,"state":"failed","reason":"\\ud800"}',
    b'{"dp_rank":0,"epoch":1,"state":"failed","reason":"%s"}' % (b"x" * 70_000),
    b'{"dp_rank":0,"epoch":1,"state":"failed","reason":7}',
    b'{"incarnation":"\\ud800","launch_id":"l","addresses":["h:1"],"topology":{"dp":4},"policy":"round_robin"}',
    b'{"incarnation":"i1","ip":"10.0.0.1","port":5000,"state":"\\ud800"}',
]


class TestGarbage:
    @pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
    def test_it_is_nobody_s_registration(self, cell: Cell, value: bytes) -> None:
        wait, _ = cell.want(7)
        cell.put(KEYS.room("p", 7), value)
        assert cell.follow() == []
        assert not wait.ended

    @pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
    def test_it_changes_no_instance(self, cell: Cell, value: bytes) -> None:
        before = cell.view.instance("p")
        cell.put(KEYS.prefill("p"), value)
        cell.follow()
        assert cell.view.instance("p") == before

    @pytest.mark.parametrize("value", GARBAGE, ids=range(len(GARBAGE)))
    def test_it_is_no_live_rank(self, cell: Cell, value: bytes) -> None:
        cell.put(KEYS.rank("p", Rank(1)), value)
        cell.follow()
        assert epoch_of(cell, 1) == 0

    @pytest.mark.parametrize(
        "key",
        [b"x", b"rooms/p/07", b"rooms/p/" + b"9" * 5000, b"rooms//1", b"prefill/p/ranks/0.0.0", b"\xff", b"a/b/c/d"],
    )
    def test_keys_of_no_meaning_are_passed_over(self, cell: Cell, key: bytes) -> None:
        waits = [cell.want(room)[0] for room in (1, 7)]
        cell.put(KEYS.prefix + key, RoomValue(2, epoch_of(cell, 2)).to_json())
        assert cell.follow() == []
        assert cell.relist() == []
        assert not any(wait.assignment or wait.ended for wait in waits)
        assert set(cell.view.instances) == {"p"}


INSTANCES = ("p", "q")
ROOMS = (1, 2, 3)


class SameAnswerEverywhere(RuleBasedStateMachine):
    """A view that sees every revision, and one that has gaps and lists, say the same of everything at one revision.

    Each wait is told at most one answer and one end, and none is left without an answer that there is.
    """

    @initialize()
    def start(self) -> None:
        self.etcd = MemoryEtcd()
        self.every, self.gaps = View(KEYS), View(KEYS)
        self.seen = {self.every: 0, self.gaps: 0}
        self.starts = 0
        self.waits: dict[View, list[Wait]] = {self.every: [], self.gaps: []}
        self.told: dict[Wait, list[type]] = {}

    # --- the prefill side, as the agent writes it

    def exists(self, key: bytes) -> bool:
        return key in self.etcd.keys

    def ranks(self, id: str) -> list[bytes]:
        return [kv.key for kv in self.etcd.scan(KEYS.prefill(id) + b"/ranks/").kvs]

    def incarnation(self, id: str) -> InstanceInfo | None:
        kv = self.etcd.keys.get(KEYS.prefill(id))
        return InstanceInfo.from_json(kv.value) if kv else None

    @rule(id=st.sampled_from(INSTANCES), dp=st.integers(1, 2), tp=st.integers(1, 2), follow=st.booleans())
    def starts_up(self, id: str, dp: int, tp: int, follow: bool) -> None:
        if self.ranks(id) or self.exists(KEYS.prefill(id)):
            return
        self.starts += 1
        policy = "follow_bootstrap_room" if follow else "round_robin"
        info = InstanceInfo(f"i{self.starts}", "launch", ("shared:1", f"{id}:1"), Topology(dp=dp, tp=tp), policy)
        self.write([Put(KEYS.prefill(id), info.to_json(), 0), self.rank_put(id, Rank(0), info)])

    def rank_put(self, id: str, rank: Rank, info: InstanceInfo) -> Put:
        return Put(KEYS.rank(id, rank), RankEndpoint(rank, "ip", 1, info.incarnation).to_json(), 0)

    @rule(id=st.sampled_from(INSTANCES), dp=st.integers(0, 1), tp=st.integers(0, 1))
    def rank_joins(self, id: str, dp: int, tp: int) -> None:
        info, rank = self.incarnation(id), Rank(dp, 0, tp, 0)
        if info and dp < info.topology.dp and tp < info.topology.tp and not self.exists(KEYS.rank(id, rank)):
            self.write([self.rank_put(id, rank, info)])

    @rule(id=st.sampled_from(INSTANCES), which=st.integers(0, 3))
    def rank_dies(self, id: str, which: int) -> None:
        ranks = self.ranks(id)
        if which < len(ranks):
            self.write([Delete(ranks[which])])

    @rule(id=st.sampled_from(INSTANCES))
    def ends(self, id: str) -> None:
        info = self.incarnation(id)
        if info:
            self.write([Delete(key) for key in self.ranks(id)])
            self.write([Put(KEYS.prefill(id), replace(info, state=ENDED).to_json(), None)])
            self.write([Delete(KEYS.prefill(id))])

    @rule(id=st.sampled_from(INSTANCES))
    def vanishes(self, id: str) -> None:
        self.write([Delete(key) for key in (*self.ranks(id), KEYS.prefill(id)) if self.exists(key)])

    @rule(id=st.sampled_from(INSTANCES))
    def another_agent_writes_the_instance_again(self, id: str) -> None:
        info = self.incarnation(id)
        if info:
            self.write([Delete(KEYS.prefill(id))])
            self.write([Put(KEYS.prefill(id), info.to_json(), 0)])

    @rule(id=st.sampled_from(INSTANCES), room=st.sampled_from(ROOMS), dp=st.integers(0, 1), failed=st.booleans())
    def registers(self, id: str, room: int, dp: int, failed: bool) -> None:
        epoch, key = self.every.epoch(id, dp), KEYS.room(id, room)
        if not epoch:
            return
        old = RoomValue.from_json(self.etcd.keys[key].value) if self.exists(key) else None
        if old and self.every.epoch(id, old.dp_rank) != old.epoch:
            self.write([Delete(key)])
        elif old:
            return
        value = RoomValue(dp, epoch, FAILED if failed else ASSIGNED, "why" * failed)
        assert self.etcd.txn([Compare(key, 0)], [Put(key, value.to_json(), 0)]).succeeded
        self.follow(self.every)

    @rule(id=st.sampled_from(INSTANCES), room=st.sampled_from(ROOMS), release=st.booleans())
    def room_ends(self, id: str, room: int, release: bool) -> None:
        key = KEYS.room(id, room)
        value = RoomValue.from_json(self.etcd.keys[key].value) if self.exists(key) else None
        if release:
            self.write([Delete(key)])
        elif value:
            self.write([Put(key, RoomValue(value.dp_rank, value.epoch, FAILED, "late").to_json(), 0)])

    def write(self, operations: list[Put | Delete]) -> None:
        self.etcd.txn([], operations)
        self.follow(self.every)

    # --- the decode side

    @rule(
        name=st.sampled_from([*INSTANCES, "shared:1", "q:1"]),
        room=st.sampled_from(ROOMS),
        named=st.none() | st.integers(0, 1),
    )
    def wants(self, name: str, room: int, named: int | None) -> None:
        for view in (self.every, self.gaps):
            wait = Wait(None, len(self.told), name, room, named)
            self.waits[view].append(wait)
            self.told[wait] = []
            self.hear(view.waits.want(wait))

    @rule(which=st.integers(0, 10))
    def is_done(self, which: int) -> None:
        for view, waits in self.waits.items():
            if which < len(waits):
                view.waits.forget(waits.pop(which))

    @rule()
    def catches_up(self) -> None:
        self.follow(self.gaps)
        self.check()

    @rule()
    def lists(self) -> None:
        listing = self.etcd.scan(KEYS.prefix)
        self.hear(self.gaps.relist(listing.header.revision, listing.kvs))
        self.seen[self.gaps] = listing.header.revision
        self.check()

    # --- what must hold

    def follow(self, view: View) -> None:
        for events in self.etcd.events(KEYS.prefix, self.seen[view] + 1):
            self.hear(view.apply(events[-1].mod_revision, events))
        self.seen[view] = self.etcd.revision

    def hear(self, notices: list[Notice]) -> None:
        for notice in news(notices):
            assert isinstance(notice, (Resolved, WaitFailed, WaitLost))
            told = self.told[notice.wait]
            assert len(told) <= 1 and WaitLost not in told and WaitFailed not in told, "an end is final"
            assert not (isinstance(notice, Resolved) and told), "a wait is answered once"
            told.append(type(notice))

    def check(self) -> None:
        assert _content(self.every) == _content(self.gaps)
        for view, waits in self.waits.items():
            for wait in waits:
                if wait.ended:
                    continue
                if wait.assignment:
                    found = wait.assignment
                    assert view.epoch(found.instance, found.dp_rank) == found.epoch, "no answer outlives its epoch"
                elif wait.placed == view.find(wait.instance):
                    assert self.ask_anew(view, wait) is None, "no wait is left without an answer that there is"
        for wait in self.waits[self.every]:
            assert self.ask_anew(self.every, wait) == self.ask_anew(self.gaps, wait)

    def ask_anew(self, view: View, like: Wait) -> tuple[object, ...] | None:
        if view.find(like.instance) != self.every.find(like.instance):
            return None
        wait = Wait(None, -1, like.instance, like.room, like.named_rank)
        notices = news(view.waits.want(wait))
        view.waits.forget(wait)
        assert len(notices) <= 1
        if notices and isinstance(notices[0], WaitLost):  # a group admits nothing below the largest floor
            floor = max(self.every.floor, self.gaps.floor)
            return WaitLost, *notices[0][1:3], max(notices[0].revision, floor), notices[0].arrived
        return (type(notices[0]), *notices[0][1:]) if notices else None

    @invariant()
    def waits_that_ended_leave_no_trace(self) -> None:
        for view, waits in self.waits.items():
            if all(wait.ended for wait in waits):
                assert is_at_rest(view)

    def teardown(self) -> None:
        for view, waits in self.waits.items():
            for wait in waits:
                view.waits.forget(wait)
            assert is_at_rest(view)


def _content(view: View) -> dict[str, object]:
    instances = {id: (instance.info, instance.epochs, instance.endpoints) for id, instance in view.instances.items()}
    return {"instances": instances, "rooms": view.rooms}


TestSameAnswerEverywhere = SameAnswerEverywhere.TestCase
TestSameAnswerEverywhere.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
