"""What a seed decides, drawn before anything runs, so that one fault less changes nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Agents of the world; processes of a DP rank sit at the first two by turns, decode at the last.
AGENTS = ("prefill-0", "prefill-1", "decode")
#: When, in the calm, there are rooms again, which nothing may keep from being served, and for how long, seconds.
SETTLED, SERVED = 15.0, 2.0
#: Seeds that are always tried: those after the first six have broken a rule before what they found was mended.
FIXED = (*range(6), 18, 21, 41, 56, 62, 68, 80, 83)
#: What may be done to a world.
FAULTS = (
    *("kill", "terminate", "watches end", "watches held"),
    *("answers lost", "etcd freezes", "session revoked", "compaction"),
    *("leader changes", "engine killed", "engine stopped"),
    *("agent asleep", "engine drains"),
)
#: How the DP ranks of a world are chosen: by its engines, or computed from the room.
POLICIES = ("round_robin", "round_robin", "follow_bootstrap_room")
#: How long there are rooms and faults, seconds.
SHORT, LONG = 20.0, 60.0
#: DP ranks that there might be, and rooms of a lot.
DP, LOT = 4, 3


class Room(NamedTuple):
    """A request: when it is due, who takes it, and what becomes of it.

    Attributes:
        fails: its rank fails it as soon as it is registered, or before.
        lets_go: decode fetches it at once, and it is released; else decode keeps it.
        named: the request names the rank that takes it.
        by_address: the request names the instance by its address.
        lot: registered together with the others of this number; 0: alone.
    """

    due: float
    room: int
    dp_rank: int
    fails: bool
    lets_go: bool
    named: bool
    by_address: bool
    lot: int


class Fault(NamedTuple):
    """Something done to the world.

    Attributes:
        agent: to whom, where it is an agent's fault.
        luck: how long, and to which engine: between 0 and 1.
    """

    at: float
    kind: str
    agent: str
    luck: float


@dataclass(frozen=True)
class Plan:
    """A world.

    Attributes:
        seed: also of all delays.
        ranks: DP ranks that there are, of a topology of more.
        tp: processes of each.
        policy: how the ranks are chosen.
        linger: how long ranks stay after their process has gone, seconds.
        seconds: how long there are rooms and faults.
    """

    seed: int
    ranks: int
    tp: int
    policy: str
    linger: float
    rooms: tuple[Room, ...]
    faults: tuple[Fault, ...]
    seconds: float

    @classmethod
    def draw(cls, seed: int, *, seconds: float = 0.0, rate: float = 50.0, kinds: Sequence[str] = FAULTS) -> Plan:
        """From a seed; swarm testing: each world has some kinds of faults only. ``seconds``: 0 for the seed to say."""
        seconds = seconds or _length(seed)
        shape, rooms, faults = (random.Random(f"{seed} {name}") for name in ("shape", "rooms", "faults"))
        ranks, tp = shape.choice((1, 2)), shape.choice((1, 1, 3))
        chosen = [kind for kind in kinds if shape.random() < 0.6] or list(kinds)
        policy, linger = shape.choice(POLICIES), shape.choice((0.0, 0.0, 1.0))
        drawn: list[Room] = []
        for due, end in ((0.5, seconds), (seconds + SETTLED, seconds + SETTLED + SERVED)):
            while due < end:
                drawn += _request(rooms, due, ranks, policy, len(drawn) + 1)
                due += rooms.expovariate(rate)
        harm = tuple(_faults(faults, chosen, seconds))
        return cls(seed, ranks, tp, policy, linger, tuple(drawn), harm, seconds)

    def agent_of(self, tp_rank: int) -> str:
        """At which agent a process of a DP rank is."""
        return AGENTS[tp_rank % 2]


def _length(seed: int) -> float:
    """The first seeds' worlds are short, for the tests; of the others many are long: faults come at less cost there."""
    return SHORT if seed < 100 else random.Random(f"{seed} length").choice((SHORT, LONG, LONG))


def _request(draw: random.Random, due: float, ranks: int, policy: str, number: int) -> Iterator[Room]:
    """One room, or now and then a lot of them."""
    in_lot, dp_rank = draw.random() < 0.04, draw.randrange(ranks)
    named, by_address = draw.random() < 0.2, draw.random() < 0.5
    for _ in range(LOT if in_lot else 1):
        room = draw.getrandbits(64)
        if policy == "follow_bootstrap_room":
            room += dp_rank - room % DP
        fate = draw.random() < 0.05, draw.random() < 0.7
        yield Room(due, room, dp_rank, *fate, named, by_address, number if in_lot else 0)


def _faults(draw: random.Random, kinds: Sequence[str], seconds: float) -> Iterator[Fault]:
    at = 2.0
    while at < seconds:
        yield Fault(at, draw.choice(kinds), draw.choice(AGENTS), draw.random())
        at += draw.uniform(0.3, 2.0)
