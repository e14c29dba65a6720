"""The revision machine, message by message, and against a model etcd."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from etcd_pd.core.records import Delete, Event, Header, KeyValue, Listing, Put, WatchResponse
from etcd_pd.core.watch import (
    LONGEST_SPREAD,
    Changes,
    Relist,
    Reopen,
    Resume,
    Snapshot,
    WatchMachine,
    WatchState,
    relist_spread,
)
from tests.support.memory_etcd import MemoryEtcd

CLUSTER = 0xC1


def header(revision: int, cluster: int = CLUSTER) -> Header:
    return Header(cluster, revision)


def event(revision: int, key: bytes = b"/k") -> Event:
    return Event(key, revision, KeyValue(key, b"v", revision, revision, 0))


def response(revision: int, *revisions: int, fragment: bool = False) -> WatchResponse:
    return WatchResponse(header(revision), [event(r) for r in revisions], fragment=fragment)


def created(revision: int) -> WatchResponse:
    return WatchResponse(header(revision), created=True)


def synced_at(revision: int) -> WatchMachine:
    """A machine that has listed and watches."""
    machine = WatchMachine()
    machine.listed(Listing(header(revision), []))
    machine.next()
    machine.received(created(revision))
    assert machine.state is WatchState.SYNCED
    return machine


def test_it_lists_first_and_watches_from_that_revision_on() -> None:
    machine = WatchMachine()
    assert machine.next() == Relist()
    kvs = [KeyValue(b"/k", b"v", 3, 5, 0)]
    assert machine.listed(Listing(header(7), kvs)) == Snapshot(7, kvs, void=False)
    assert machine.next() == Resume(7)
    assert machine.state is WatchState.STALE


def test_it_is_synced_only_when_everything_up_to_the_start_of_the_watch_arrived() -> None:
    machine = WatchMachine()
    machine.listed(Listing(header(7), []))
    states = []
    for message in (created(10), response(10, 9), response(10, 10)):
        machine.received(message)
        states.append(machine.state)
    assert states == [WatchState.STALE, WatchState.STALE, WatchState.SYNCED]


def test_a_progress_answer_proves_that_nothing_else_happened_under_the_prefix() -> None:
    machine = WatchMachine()
    machine.listed(Listing(header(7), []))
    states = []
    for message in (created(10), response(9), response(10)):
        assert machine.received(message) is None
        states.append(machine.state)
    assert states == [WatchState.STALE, WatchState.STALE, WatchState.SYNCED], "an older answer proves nothing"


def test_progress_is_never_a_place_to_resume_from() -> None:
    machine = synced_at(7)
    machine.received(response(50))
    machine.disconnected()
    assert machine.next() == Resume(7)


def test_changes_carry_the_last_complete_revision() -> None:
    machine = synced_at(7)
    assert machine.received(response(9, 8, 9, 9)) == Changes(9, [event(8), event(9), event(9)])
    assert machine.revision == 9
    assert machine.next() == Resume(9)


def test_fragments_are_handed_out_together() -> None:
    machine = synced_at(7)
    assert machine.received(response(8, 8, 8, fragment=True)) is None
    assert machine.received(response(8, 8, fragment=True)) is None
    assert machine.revision == 7
    assert machine.received(response(8, 8)) == Changes(8, [event(8)] * 4)


def test_a_resumed_watch_drops_the_known_revision_when_it_comes_again_in_fragments() -> None:
    machine = synced_at(7)
    machine.received(response(9, 9, 9, 9))
    machine.disconnected()
    assert machine.next() == Resume(9)
    machine.received(created(10))
    assert machine.received(response(10, 9, fragment=True)) is None
    assert machine.received(response(10, 9, 9, 10, fragment=True)) is None
    assert machine.received(response(10, 10)) == Changes(10, [event(10)] * 2)
    assert machine.state is WatchState.SYNCED


def test_it_resumes_before_a_revision_whose_fragments_did_not_all_come() -> None:
    machine = synced_at(7)
    machine.received(response(8, 8, fragment=True))
    machine.disconnected()
    assert machine.next() == Resume(7)
    machine.received(created(8))
    assert machine.received(response(8, 8, 8)) == Changes(8, [event(8)] * 2), "nothing of the torn one is left"


def test_progress_between_fragments_does_not_sync() -> None:
    machine = synced_at(7)
    machine.disconnected()
    machine.next()
    machine.received(created(8))
    machine.received(response(8, 8, fragment=True))
    machine.received(response(8))
    assert machine.state is WatchState.STALE


def test_what_was_seen_before_is_not_handed_out_again() -> None:
    machine = synced_at(7)
    machine.received(response(9, 8, 9))
    assert machine.received(response(9, 8, 9)) is None
    assert machine.received(response(10, 9, 10)) == Changes(10, [event(10)])


def test_a_lost_stream_is_stale_at_once_and_resumes() -> None:
    machine = synced_at(7)
    machine.disconnected()
    assert machine.state is WatchState.STALE
    assert machine.next() == Resume(7)


def test_compaction_asks_for_a_new_list_and_voids_nothing() -> None:
    machine = synced_at(7)
    machine.disconnected()
    machine.next()
    machine.received(created(20))
    # etcd's header says revision 0 here
    outcome = machine.received(WatchResponse(header(0), compact_revision=15))
    assert isinstance(outcome, Reopen) and "15" in outcome.reason
    assert machine.state is WatchState.STALE
    assert machine.next() == Relist()
    assert machine.listed(Listing(header(20), [])) == Snapshot(20, [], void=False)
    assert machine.next() == Resume(20)


def test_another_cluster_voids_what_was_known() -> None:
    machine = synced_at(7)
    outcome = machine.received(WatchResponse(header(9, cluster=0xBAD), [event(9)]))
    assert isinstance(outcome, Reopen) and "bad" in outcome.reason
    assert machine.state is WatchState.STALE
    assert machine.next() == Relist()
    assert machine.listed(Listing(header(9, cluster=0xBAD), [])) == Snapshot(9, [], void=True)
    assert machine.listed(Listing(header(10, cluster=0xBAD), [])) == Snapshot(10, [], void=False), "said once"


def test_nothing_is_concluded_when_a_proxy_creates_the_watch_and_names_no_cluster() -> None:
    machine = synced_at(7)
    machine.received(response(30, 30))
    machine.disconnected()
    machine.next()
    assert machine.received(WatchResponse(header(1, cluster=0), created=True)) is None, "its revision is made up too"
    assert machine.state is WatchState.SYNCED
    assert machine.received(response(31, 31)) == Changes(31, [event(31)])
    assert machine.cluster_id == CLUSTER


def test_a_list_from_another_cluster_is_not_taken_for_this_one() -> None:
    machine = synced_at(7)
    assert isinstance(machine.listed(Listing(header(9, cluster=0xBAD), [])), Reopen)
    assert machine.next() == Relist()


def test_a_store_behind_what_was_read_is_listed_again() -> None:
    machine = synced_at(7)
    machine.received(response(30, 30))
    machine.disconnected()
    machine.next()
    assert isinstance(machine.received(created(12)), Reopen)
    assert machine.state is WatchState.STALE
    assert machine.next() == Relist()


def test_a_list_below_what_was_seen_is_a_restored_store() -> None:
    machine = synced_at(7)
    machine.received(response(30, 30))
    machine.disconnected()
    machine.next()
    machine.received(created(12))
    assert machine.listed(Listing(header(12), [])) == Snapshot(12, [], void=True)
    assert machine.next() == Resume(12)
    machine.received(created(12))
    assert machine.state is WatchState.SYNCED


def test_a_restored_store_is_recognised_when_a_later_revision_was_noted() -> None:
    machine = synced_at(7)
    machine.note_revision(30)  # the keys watched were quiet meanwhile
    machine.disconnected()
    assert machine.next() == Resume(7)
    assert isinstance(machine.received(created(12)), Reopen)
    assert machine.next() == Relist()
    assert machine.listed(Listing(header(12), [])) == Snapshot(12, [], void=True)


def test_an_answer_is_believed_when_a_later_revision_is_noted_on_its_way() -> None:
    machine = WatchMachine()
    machine.next()
    machine.note_revision(30)
    assert machine.listed(Listing(header(29), [])) == Snapshot(29, [], void=False)
    machine.next()
    machine.note_revision(40)
    assert machine.received(created(35)) is None
    machine.received(response(35, 35))
    assert machine.state is WatchState.SYNCED


def test_a_lagging_member_voids_nothing() -> None:
    machine = synced_at(7)
    machine.received(response(30, 30))
    machine.disconnected()
    machine.next()
    machine.received(created(29))
    assert machine.listed(Listing(header(31), [])) == Snapshot(31, [], void=False)


def test_lists_are_spread_when_many_agents_need_large_ones_and_never_for_long() -> None:
    assert relist_spread(3, 100) == 0.0
    assert 0.7 < relist_spread(20, 20_000) < 0.9
    assert relist_spread(100, 100_000) == LONGEST_SPREAD


class TestSuccessor:
    """A second stream, begun where the first one was, which takes its place."""

    def test_nothing_is_lost_and_nothing_comes_twice_when_both_streams_went_on(self) -> None:
        machine = synced_at(7)
        other = machine.successor()
        assert machine.received(response(8, 8)) == Changes(8, [event(8)])
        assert other.received(created(8)) is None and other.state.value == "stale"
        learnt = [found for found in (other.received(response(9, 8, 9)),) if isinstance(found, Changes)]
        assert other.state is WatchState.SYNCED
        assert machine.take_over(learnt) == Changes(9, [event(9)])
        assert machine.received(response(10, 9, 10)) == Changes(10, [event(10)])
        assert machine.state is WatchState.SYNCED

    def test_nothing_is_new_when_the_first_stream_was_ahead(self) -> None:
        machine = synced_at(7)
        other = machine.successor()
        machine.received(response(9, 8, 9))
        other.received(created(8))
        learnt = other.received(response(8, 8))
        assert isinstance(learnt, Changes)
        assert machine.take_over([learnt]) is None
        assert machine.revision == 9

    def test_half_a_revision_of_the_first_stream_is_dropped(self) -> None:
        machine = synced_at(7)
        other = machine.successor()
        machine.received(response(8, 8, fragment=True))
        other.received(created(8))
        learnt = other.received(response(8, 8, 8))
        assert isinstance(learnt, Changes)
        assert machine.take_over([learnt]) == Changes(8, [event(8), event(8)])
        assert machine.received(response(9, 9)) == Changes(9, [event(9)])

    def test_it_is_no_successor_when_its_member_lags(self) -> None:
        machine = synced_at(7)
        machine.received(response(9, 8, 9))
        other = machine.successor()
        assert isinstance(other.received(created(8)), Reopen)
        assert machine.state is WatchState.SYNCED

    def test_it_is_no_successor_when_another_cluster_answers(self) -> None:
        other = synced_at(7).successor()
        assert isinstance(other.received(WatchResponse(header(9, 0xC2), created=True)), Reopen)


def test_headers_of_a_watch_are_no_clock() -> None:
    machine = synced_at(7)
    machine.received(response(20))
    assert machine.received(response(9, 9)) == Changes(9, [event(9)])
    assert machine.state is WatchState.SYNCED


def test_a_closed_machine_stays_closed() -> None:
    machine = synced_at(7)
    machine.close()
    machine.received(response(8, 8))
    machine.received(response(9))
    machine.disconnected()
    assert machine.state is WatchState.CLOSED


def test_its_repr_says_state_and_revision() -> None:
    assert repr(synced_at(7)) == "<WatchMachine synced revision=7>"


KEYS = [b"/p/a", b"/p/b", b"/p/c", b"/q/other"]
Content = dict[bytes, tuple[bytes, int]]


class FollowsEtcd(RuleBasedStateMachine):
    """Whatever breaks in between: what was handed out adds up to what etcd held, and SYNCED is no lie."""

    @initialize()
    def start(self) -> None:
        self.histories = 0
        self.machine = WatchMachine()
        self.view: Content = {}
        self.revision = 0
        self.stream: list[WatchResponse] | None = None
        self.next_event = self.begun_at = 0
        self.new_etcd(CLUSTER)

    def new_etcd(self, cluster: int) -> None:
        self.etcd = MemoryEtcd(cluster_id=cluster)
        self.past: dict[int, Content] = {}
        self.record()

    def record(self) -> None:
        self.past[self.etcd.revision] = {kv.key: (kv.value, kv.mod_revision) for kv in self.etcd.scan(b"/p/").kvs}

    # --- what happens to etcd

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True), delete=st.booleans())
    def write(self, keys: list[bytes], delete: bool) -> None:
        value = b"%d" % self.histories
        self.etcd.txn([], [Delete(key) if delete else Put(key, value, 0) for key in keys])
        self.record()

    @rule()
    def compact(self) -> None:
        self.etcd.compact()

    @rule()
    def restore_from_an_old_backup(self) -> None:
        # one that has caught up with what was seen, under the same cluster id, cannot be told from the old one
        self.histories += 1
        self.new_etcd(CLUSTER if self.machine.revision > 1 else CLUSTER + self.histories)
        self.lose_the_stream()
        self.connect()

    # --- what the agent does

    @precondition(lambda self: self.stream is None)
    @rule()
    def connect(self) -> None:
        step = self.machine.next()
        if isinstance(step, Relist):
            self.take(self.machine.listed(self.etcd.scan(b"/p/")))
            return
        self.stream = [WatchResponse(self.etcd.header, created=True)]
        self.next_event = self.begun_at = step.start_revision
        self.hear(fragment=False, most=0)

    @precondition(lambda self: self.stream is not None)
    @rule(fragment=st.booleans(), most=st.integers(1, 3))
    def hear(self, fragment: bool, most: int) -> None:
        assert self.stream is not None
        if self.next_event < self.etcd.compacted:  # also where the stream was merely behind
            head = Header(self.etcd.cluster_id, 0)
            self.stream.append(WatchResponse(head, compact_revision=self.etcd.compacted))
        else:
            for group in self.etcd.events(b"/p/", self.next_event)[:most]:
                self.stream += self.messages(group, fragment)
                self.next_event = group[-1].mod_revision + 1
        if self.stream:
            self.take(self.machine.received(self.stream.pop(0)))

    @precondition(lambda self: self.stream is not None)
    @rule()
    def ask_for_progress(self) -> None:
        assert self.stream is not None
        ahead = self.begun_at > self.etcd.revision
        if not self.stream and not ahead and not self.etcd.events(b"/p/", self.next_event):
            self.stream.append(WatchResponse(self.etcd.header))

    @rule()
    def lose_the_stream(self) -> None:
        self.stream = None
        self.machine.disconnected()

    # --- what must hold

    @invariant()
    def what_was_handed_out_is_what_etcd_held(self) -> None:
        if self.machine.state is WatchState.SYNCED:
            assert self.view == self.past[self.revision]

    def teardown(self) -> None:
        """Left alone, it always comes to see everything."""
        self.lose_the_stream()
        for _ in range(200):
            if self.stream is None:
                self.connect()
            else:
                self.ask_for_progress()
                self.hear(fragment=False, most=3)
        assert self.machine.state is WatchState.SYNCED
        assert self.view == self.past[self.etcd.revision]

    # --- inside

    def take(self, outcome: object) -> None:
        if isinstance(outcome, Reopen):
            self.stream = None
        elif isinstance(outcome, Snapshot):
            assert outcome.void or outcome.revision >= self.revision, "going back in time is said"
            self.view = {kv.key: (kv.value, kv.mod_revision) for kv in outcome.kvs}
            self.revision = outcome.revision
        elif isinstance(outcome, Changes):
            for change in outcome.events:
                assert self.revision < change.mod_revision <= outcome.revision
                self.view.pop(change.key, None)
                if change.kv:
                    self.view[change.key] = (change.kv.value, change.mod_revision)
            self.revision = outcome.revision
            assert self.view == self.past[self.revision], "whole revisions, none left out"

    def messages(self, group: list[Event], fragment: bool) -> list[WatchResponse]:
        step = 1 if fragment else len(group)
        parts = [group[start : start + step] for start in range(0, len(group), step)]
        return [WatchResponse(self.etcd.header, part, fragment=part is not parts[-1]) for part in parts]


TestFollowsEtcd = FollowsEtcd.TestCase
TestFollowsEtcd.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
