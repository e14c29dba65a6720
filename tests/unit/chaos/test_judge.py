"""A judge that misses a planted violation proves nothing: each rule is broken here in each way that it can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.history import Event, Recorder, read
from tests.chaos.judge import Bounds, judge

BOUNDS = Bounds(dead=3.0, visible=5.0, heal=2.0, late=1.0)
Line = tuple[float, str, str, dict[str, Any]]


class Story:
    """A history told in a few words: rank 0 has epoch 10, rank 1 epoch 11; room 7 is rank 0's unless said otherwise."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.rank(0.0, 0, 10).rank(0.0, 1, 11).view(0.0, 11)

    def at(self, t: float, who: str, what: str, **data: Any) -> Story:
        self.lines.append((t, who, what, data))
        return self

    def rank(self, t: float, dp_rank: int, epoch: int, alive: bool = True, revision: int = 0) -> Story:
        self.at(t, "witness", "rank", instance="p", dp_rank=dp_rank, epoch=epoch, revision=revision, alive=alive)
        return self

    def restarted(self, t: float) -> Story:
        """The whole instance is gone, and a second later rank 0 is back."""
        self.rank(t, 0, 10, alive=False, revision=25).rank(t, 1, 11, alive=False, revision=26)
        return self.rank(t + 1.0, 0, 30)

    def register(self, t: float, dp_rank: int = 0, epoch: int = 10, token: int = 20, lease: int = 1) -> Story:
        """Asked for, acknowledged and in etcd."""
        self.at(t, f"r{dp_rank}", "register", instance="p", dp_rank=dp_rank, room=7)
        self.in_etcd(t + 0.001, token)
        return self.acknowledged(t + 0.002, dp_rank, epoch, token, lease)

    def acknowledged(self, t: float, dp_rank: int = 0, epoch: int = 10, token: int = 20, lease: int = 1) -> Story:
        room = {"instance": "p", "dp_rank": dp_rank, "room": 7, "epoch": epoch, "token": token, "lease": lease}
        return self.at(t, f"r{dp_rank}", "registered", **room)

    def in_etcd(self, t: float, token: int = 20, alive: bool = True) -> Story:
        return self.at(t, "witness", "room", instance="p", room=7, token=token, revision=token, alive=alive)

    def rejected(self, t: float, error: str, dp_rank: int = 0) -> Story:
        return self.at(t, f"r{dp_rank}", "rejected", instance="p", dp_rank=dp_rank, room=7, error=error)

    def release(self, t: float, dp_rank: int = 0) -> Story:
        return self.at(t, f"r{dp_rank}", "release", instance="p", room=7)

    def want(self, t: float, timeout: float = 10.0) -> Story:
        return self.at(t, "d", "want", instance="p", room=7, timeout=timeout)

    def resolved(self, t: float, dp_rank: int = 0, epoch: int = 10, stale: bool = False) -> Story:
        return self.at(t, "d", "resolved", instance="p", room=7, dp_rank=dp_rank, epoch=epoch, revision=20, stale=stale)

    def ended(self, t: float, error: str, **more: Any) -> Story:
        return self.at(t, "d", "ended", instance="p", room=7, error=error, **more)

    def lost(self, t: float, dp_rank: int = 0, epoch: int = 10) -> Story:
        return self.ended(t, "PrefillLost", dp_rank=dp_rank, epoch=epoch)

    def done(self, t: float) -> Story:
        return self.at(t, "d", "done", instance="p", room=7)

    def view(self, t: float, revision: int, view: str = "synced") -> Story:
        return self.at(t, "d", "view", revision=revision, view=view)

    def healed(self, t: float, agents: list[str]) -> Story:
        return self.at(t, "nemesis", "healed", name="leader killed", number=1, agents=agents)

    def caught_up(self, t: float, agent: str, seconds: float) -> Story:
        return self.at(t, "auditor", "caught_up", agent=agent, healed=1, seconds=seconds)

    def audited(self, t: float, etcd: str, view: str) -> Story:
        return self.at(t, "auditor", "audited", agent="a", instance="p", room=7, etcd=etcd, view=view)

    def judged(self) -> list[int]:
        """The rules that were broken."""
        events = sorted((Event(*line) for line in self.lines), key=lambda event: event.t)
        return sorted({violation.rule for violation in judge(events, BOUNDS)})


def a_good_life() -> Story:
    story = Story().want(1.0).register(1.1).resolved(1.2).done(2.0).release(2.1).in_etcd(2.2, alive=False)
    return story.view(2.2, 21)


def test_a_good_life_breaks_no_rule() -> None:
    assert a_good_life().judged() == []


def restored() -> Story:
    """Another history of etcd, with both ranks' keys as they were."""
    return Story().at(5.0, "witness", "void").rank(5.1, 0, 10).rank(5.1, 1, 11)


INNOCENT: dict[str, Callable[[], Story]] = {
    "a room goes to another rank after its release": lambda: (
        Story().register(1.0).release(2.0).in_etcd(2.1, alive=False).register(3.0, 1, 11, token=30)
    ),
    "a room is taken over from a dead epoch": lambda: (
        Story().register(1.0).rank(2.0, 0, 10, alive=False, revision=25).register(3.0, 1, 11, token=30)
    ),
    "siblings hold the same token": lambda: Story().register(1.0).acknowledged(1.0),
    "a decode is notified of the death in time": lambda: (
        Story().want(1.0).register(1.0).resolved(1.1).rank(2.0, 0, 10, alive=False, revision=25).lost(2.1)
    ),
    "a stale answer names a dead epoch": lambda: (
        Story()
        .register(1.0)
        .rank(2.0, 0, 10, alive=False, revision=25)
        .view(2.0, 0, "stale")
        .want(8.0)
        .resolved(8.1, stale=True)
        .done(8.2)
    ),
    "the client is cut off while the epoch dies": lambda: (
        Story()
        .want(1.0, timeout=60)
        .register(1.0)
        .resolved(1.1)
        .view(1.5, 0, "stale")
        .rank(2.0, 0, 10, alive=False, revision=25)
        .view(20.0, 30)
        .lost(20.1)
    ),
    "nobody ever registered it": lambda: Story().want(1.0).ended(11.0, "RoomTimeout"),
    "it was registered too late": lambda: Story().want(1.0).register(10.9).ended(11.0, "RoomTimeout"),
    "it was released before the client was synced again": lambda: (
        Story()
        .view(0.5, 0, "stale")
        .want(1.0, timeout=30)
        .register(1.0)
        .release(20.0)
        .view(20.1, 30)
        .ended(31.0, "RoomTimeout")
    ),
    "its lease was revoked by hand": lambda: (
        Story().register(1.0).at(2.0, "nemesis", "revoked", lease=1).in_etcd(2.1, alive=False)
    ),
    "the revision goes back with a resync in between": lambda: (
        Story().view(1.0, 30).view(2.0, 0, "stale").view(3.0, 20)
    ),
    "the agent restarted and the client asks again": lambda: Story().view(1.0, 30).view(1.1, 0).view(1.2, 29),
    "prefill failed the room": lambda: (
        Story().want(1.0).at(1.1, "r0", "fail", instance="p", room=7).ended(1.2, "RoomFailed")
    ),
    "its agent failed the room when it turned out to be written after its registration had timed out": lambda: (
        Story().want(1.0).resolved(1.1).rejected(1.2, "RegistrationTimeout").ended(1.3, "RoomFailed")
    ),
    "a decode is sent to the rank of the policy, whose registration timed out, and its failure follows": lambda: (
        Story().want(1.0).rejected(1.1, "RegistrationTimeout").resolved(1.1).ended(1.3, "RoomFailed")
    ),
    "a decode is done with the rank of the policy, whose registration timed out, before its failure follows": lambda: (
        Story().want(1.0).rejected(1.1, "RegistrationTimeout").resolved(1.2).done(1.3).in_etcd(1.4)
    ),
    "a room vanishes whose rank was notified of its end, though a restored etcd has its key for a while": lambda: (
        Story().register(1.0).at(1.5, "r0", "rank_ended", instance="p", epoch=10).in_etcd(2.0, alive=False)
    ),
    "the whole instance is gone": lambda: (
        Story()
        .want(1.0)
        .rank(2.0, 0, 10, alive=False, revision=25)
        .rank(2.0, 1, 11, alive=False, revision=26)
        .lost(3.5, dp_rank=-1, epoch=0)
    ),
    "the whole instance restarted while the agent of the wait was cut off": lambda: (
        Story().view(2.0, 0, "stale").restarted(3.0).want(9.0, timeout=60).view(9.1, 31).lost(20.0, dp_rank=-1, epoch=0)
    ),
    "a registration is void after its rank was lost": lambda: (
        Story()
        .want(1.0)
        .register(1.0)
        .resolved(1.1)
        .rank(1.2, 0, 10, alive=False, revision=25)
        .rejected(1.3, "RankLost")
        .lost(1.3)
    ),
    "views are equal again in time": lambda: (
        Story().healed(5.0, ["a"]).caught_up(6.0, "a", 1.0).audited(9.0, "0@10", "0@10")
    ),
    "the room comes back under a new epoch": lambda: (
        Story()
        .want(1.0)
        .register(1.0)
        .resolved(1.1)
        .rank(2.0, 0, 10, alive=False, revision=25)
        .lost(2.1)
        .done(2.1)
        .rank(3.0, 0, 26)
        .register(3.1, 0, 26, token=30)
        .want(3.2)
        .resolved(3.3, 0, 26)
    ),
    "another history of etcd begins": lambda: (
        Story()
        .register(1.0)
        .at(5.0, "witness", "void")
        .rank(5.1, 0, 10)
        .rank(5.1, 1, 11)
        .register(6.0, 1, 11, token=20)
    ),
    "a room is taken over from a rank that a restore brought back, and that has ended since": lambda: (
        restored().register(5.2).rank(5.5, 0, 10, alive=False, revision=25).register(6.0, 1, 11, token=30)
    ),
    "a room goes after its rank, whose epoch a restore brings back within a second": lambda: (
        Story()
        .register(4.0)
        .rank(4.2, 0, 10, alive=False, revision=25)
        .in_etcd(4.3, alive=False)
        .at(4.5, "witness", "void")
        .rank(4.5, 0, 10)
    ),
    "a room is acknowledged after its history has ended, and taken by another rank in the next": lambda: (
        Story()
        .in_etcd(4.9)
        .at(5.0, "witness", "void")
        .rank(5.0, 1, 11)
        .acknowledged(5.1)
        .register(5.2, 1, 11, token=15)
    ),
    "an epoch is lost with its history, though another brings its number back": lambda: (
        Story()
        .want(1.0)
        .register(1.0)
        .resolved(1.1)
        .at(5.0, "witness", "void")
        .rank(5.1, 0, 10)
        .lost(5.2)
        .rank(9.0, 0, 10, alive=False, revision=30)
    ),
}


@pytest.mark.parametrize("story", INNOCENT.values(), ids=INNOCENT)
def test_what_is_right_is_not_condemned(story: Callable[[], Story]) -> None:
    assert story().judged() == []


PLANTED: dict[str, tuple[int, Callable[[], Story]]] = {
    "two ranks hold a room at once": (1, lambda: Story().register(1.0).register(2.0, 1, 11, token=30)),
    "two ranks hold it with the same token": (1, lambda: Story().register(1.0).acknowledged(2.0, 1, 11, token=20)),
    "the owner released only after the other was acknowledged": (
        1,
        lambda: Story().register(1.0).register(2.0, 1, 11, token=30).release(2.5),
    ),
    "the epoch died only after the room was taken over": (
        1,
        lambda: Story().register(1.0).register(2.0, 1, 11, token=30).rank(2.1, 0, 10, alive=False, revision=31),
    ),
    "the epoch had died, but in another history": (
        1,
        lambda: (
            Story()
            .rank(2.0, 0, 10, alive=False, revision=25)
            .at(5.0, "witness", "void")
            .rank(5.1, 0, 10)
            .register(5.2)
            .register(6.0, 1, 11, token=30)
        ),
    ),
    "a room is taken over from a rank that a restore brought back, and that lives": (
        1,
        lambda: restored().register(5.2).register(6.0, 1, 11, token=30),
    ),
    "a third owner takes it from a living second": (
        1,
        lambda: (
            Story().register(1.0).release(1.5).register(2.0, 1, 11, token=30).rank(0.0, 2, 12).register(3.0, 2, 12, 40)
        ),
    ),
    "a decode is sent to a rank that was refused": (
        1,
        lambda: Story().want(1.0).rejected(1.1, "RegistrationTimeout").in_etcd(1.15).resolved(1.2).done(1.3),
    ),
    "a decode is sent to a rank whose registration timed out, and whose failure is late": (
        1,
        lambda: Story().want(1.0, 30).rejected(1.1, "RegistrationTimeout").resolved(1.2).ended(6.2, "RoomFailed"),
    ),
    "a decode is done with a rank whose registration timed out, and whose failure is late": (
        1,
        lambda: Story().want(1.0).rejected(1.1, "RegistrationTimeout").resolved(1.2).done(1.3).in_etcd(6.2),
    ),
    "a decode is sent to a rank whose registration timed out, and whose failure has come before": (
        1,
        lambda: Story().want(1.0).rejected(1.1, "RegistrationTimeout").ended(1.2, "RoomFailed").resolved(1.3),
    ),
    "a decode is sent to a rank whose registration timed out, and another one has the room": (
        1,
        lambda: (
            Story()
            .want(1.0)
            .rejected(1.05, "RegistrationTimeout")
            .register(1.1, 1, 11)
            .resolved(1.2)
            .ended(1.3, "RoomFailed")
        ),
    ),
    "a decode is sent to a rank that somebody else's room was refused to": (
        1,
        lambda: (
            Story()
            .want(1.0)
            .rejected(1.1, "RoomConflict")
            .at(1.15, "r1", "fail", instance="p", room=7)
            .resolved(1.2)
            .ended(1.3, "RoomFailed")
        ),
    ),
    "a decode gets a dead epoch": (
        2,
        lambda: Story().register(1.0).rank(2.0, 0, 10, alive=False, revision=25).want(5.0).resolved(5.2).done(5.3),
    ),
    "a decode gets an epoch that never was": (
        2,
        lambda: Story().want(1.0).register(1.0).resolved(1.1, epoch=99).done(1.2),
    ),
    "a decode is not notified that its rank died": (
        2,
        lambda: Story().want(1.0).register(1.0).resolved(1.1).rank(2.0, 0, 10, alive=False, revision=25).done(9.0),
    ),
    "a decode is not told after it is synced again": (
        2,
        lambda: (
            Story()
            .want(1.0, timeout=60)
            .register(1.0)
            .resolved(1.1)
            .view(1.5, 0, "stale")
            .rank(2.0, 0, 10, alive=False, revision=25)
            .view(20.0, 30)
            .done(30.0)
        ),
    ),
    "an acknowledged room never reached etcd": (3, lambda: Story().acknowledged(1.0)),
    "an acknowledged room vanishes": (3, lambda: Story().register(1.0).in_etcd(2.0, alive=False)),
    "an acknowledged room vanishes whose rank was notified of another epoch's end": (
        3,
        lambda: Story().register(1.0).at(1.5, "r0", "rank_ended", instance="p", epoch=9).in_etcd(2.0, alive=False),
    ),
    "an acknowledged room vanishes before its rank is notified": (
        3,
        lambda: Story().register(1.0).in_etcd(2.0, alive=False).at(2.5, "r0", "rank_ended", instance="p", epoch=10),
    ),
    "an acknowledged room vanishes before its release": (
        3,
        lambda: Story().register(1.0).in_etcd(2.0, alive=False).release(2.5),
    ),
    "a decode gives up on a room that is there": (
        3,
        lambda: Story().want(1.0).register(1.5).ended(11.0, "RoomTimeout"),
    ),
    "a decode gives up on an instance that is there": (
        3,
        lambda: (
            Story()
            .want(1.0)
            .register(1.5)
            .ended(9.5, "InstanceUnknown")
            .rank(9.0, 0, 10, alive=False, revision=25)
            .rank(8.0, 1, 11, alive=False, revision=24)
        ),
    ),
    "a revision goes back": (4, lambda: Story().view(1.0, 30).view(2.0, 29)),
    "a revision goes back in two steps": (4, lambda: Story().view(1.0, 30).view(2.0, 31).view(3.0, 30)),
    "an agent never catches up": (
        5,
        lambda: Story().healed(5.0, ["a", "b"]).caught_up(6.0, "a", 1.0).audited(9.0, "0@10", "0@10"),
    ),
    "an agent catches up late": (
        5,
        lambda: Story().healed(5.0, ["a"]).caught_up(7.5, "a", 2.5).audited(9.0, "0@10", "0@10"),
    ),
    "nobody compared": (5, lambda: Story().healed(5.0, ["a"]).caught_up(6.0, "a", 1.0)),
    "a view differs": (5, lambda: Story().audited(9.0, "0@10", "1@11")),
    "a view misses a room": (5, lambda: Story().audited(9.0, "0@10", "nothing")),
    "a wait never ends": (6, lambda: Story().want(1.0).view(30.0, 12)),
    "a wait ends after its deadline": (6, lambda: Story().want(1.0).ended(12.5, "RoomTimeout")),
    "an answer comes after the deadline": (6, lambda: Story().want(1.0).register(12.0).resolved(12.5).done(12.6)),
    "a wait times out early": (6, lambda: Story().want(1.0).ended(5.0, "RoomTimeout")),
    "a wait times out though it was answered": (
        6,
        lambda: Story().want(1.0).register(10.5).resolved(10.6).ended(11.0, "RoomTimeout"),
    ),
    "a living rank is called lost": (6, lambda: Story().want(1.0).register(1.0).resolved(1.1).lost(2.0)),
    "a rank is called lost long before it died": (
        6,
        lambda: Story().want(1.0).register(1.0).resolved(1.1).lost(2.0).rank(5.0, 0, 10, alive=False, revision=25),
    ),
    "a rank that never was is called lost": (6, lambda: Story().want(1.0).lost(2.0, epoch=99)),
    "a living instance is called lost": (6, lambda: Story().want(2.0).lost(3.0, dp_rank=-1, epoch=0)),
    "an instance is called lost that restarted long before the wait": (
        6,
        lambda: Story().restarted(3.0).want(9.0, timeout=60).lost(20.0, dp_rank=-1, epoch=0),
    ),
    "an instance is called lost that restarted before the agent of the wait was cut off": (
        6,
        lambda: (
            Story()
            .restarted(3.0)
            .view(8.0, 0, "stale")
            .want(9.0, timeout=60)
            .view(9.1, 31)
            .lost(20.0, dp_rank=-1, epoch=0)
        ),
    ),
    "a living instance is called unknown": (6, lambda: Story().want(2.0).ended(5.0, "InstanceUnknown")),
    "a room is called failed that nobody failed": (
        6,
        lambda: Story().want(1.0).register(1.0).ended(1.2, "RoomFailed"),
    ),
    "a room is called failed before it was": (
        6,
        lambda: Story().want(1.0).ended(1.2, "RoomFailed").at(1.3, "r0", "fail", instance="p", room=7),
    ),
    "a room is called failed of which a registration was refused for something else": (
        6,
        lambda: Story().want(1.0).rejected(1.1, "AgentBusy").ended(1.2, "RoomFailed"),
    ),
    "an error of no known kind": (6, lambda: Story().want(1.0).ended(1.2, "KeyError")),
    "a lost assignment comes back": (
        7,
        lambda: (
            Story()
            .want(1.0)
            .register(1.0)
            .rank(1.5, 0, 10, alive=False, revision=25)
            .lost(1.6)
            .done(1.7)
            .want(1.8)
            .resolved(1.9)
            .done(2.0)
        ),
    ),
    "a lost assignment comes back to the same wait": (
        7,
        lambda: (
            Story().want(1.0).register(1.0).rank(1.5, 0, 10, alive=False, revision=25).lost(1.6).resolved(1.7).done(1.8)
        ),
    ),
}


@pytest.mark.parametrize(("rule", "story"), PLANTED.values(), ids=PLANTED)
def test_what_is_planted_is_found(rule: int, story: Callable[[], Story]) -> None:
    assert story().judged() == [rule]


def test_each_rule_was_broken_here() -> None:
    assert {rule for rule, _ in PLANTED.values()} == set(range(1, 8))


def test_a_history_is_read_back_in_order_and_without_its_torn_end(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with Recorder(paths[0], "a") as first, Recorder(paths[1], "b") as second:
        first("want", room=1)
        second("want", room=2)
        first("done", room=1)
    with paths[1].open("a") as torn:
        torn.write(json.dumps({"t": 0.0, "who": "b", "what": "done"})[:-5])
    assert [(event.who, event.what, event.room) for event in read(paths)] == [
        ("a", "want", 1),
        ("b", "want", 2),
        ("a", "done", 1),
    ]
