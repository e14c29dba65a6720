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
#: Seeds that are always tried: some have broken a rule before what they found was mended.
FIXED = (*range(6), 37, 61, 73, 93, 105, 111, 269)
#: What may be done to a world.
FAULTS = (
    *("kill", "terminate", "watches end", "watches held"),
    *("answers lost", "etcd freezes", "session revoked", "compaction"),
    *("leader changes", "engine killed", "engine stopped"),
)


class Room(NamedTuple):
    """A request: when it is due, who takes it, and what becomes of it.

    Attributes:
        fails: its rank fails it as soon as it is registered, or before.
        lets_go: decode fetches it at once, and it is released; else decode keeps it.
    """

    due: float
    room: int
    dp_rank: int
    fails: bool
    lets_go: bool


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
        seconds: how long there are rooms and faults.
    """

    seed: int
    ranks: int
    tp: int
    rooms: tuple[Room, ...]
    faults: tuple[Fault, ...]
    seconds: float

    @classmethod
    def draw(cls, seed: int, *, seconds: float = 20.0, rate: float = 50.0, kinds: Sequence[str] = FAULTS) -> Plan:
        """From a seed; swarm testing: each world has some kinds of faults only."""
        shape, rooms, faults = (random.Random(f"{seed} {name}") for name in ("shape", "rooms", "faults"))
        ranks, tp = shape.choice((1, 2)), shape.choice((1, 1, 3))
        chosen = [kind for kind in kinds if shape.random() < 0.6] or list(kinds)
        settled = seconds + SETTLED
        due = [*_rooms(rooms, ranks, 0.5, seconds, rate), *_rooms(rooms, ranks, settled, settled + SERVED, rate)]
        return cls(seed, ranks, tp, tuple(due), tuple(_faults(faults, chosen, seconds)), seconds)

    def agent_of(self, tp_rank: int) -> str:
        """At which agent a process of a DP rank is."""
        return AGENTS[tp_rank % 2]


def _rooms(draw: random.Random, ranks: int, due: float, end: float, rate: float) -> Iterator[Room]:
    while due < end:
        fate = draw.random() < 0.05, draw.random() < 0.7
        yield Room(due, draw.getrandbits(63), draw.randrange(ranks), *fate)
        due += draw.expovariate(rate)


def _faults(draw: random.Random, kinds: Sequence[str], seconds: float) -> Iterator[Fault]:
    at = 2.0
    while at < seconds:
        yield Fault(at, draw.choice(kinds), draw.choice(AGENTS), draw.random())
        at += draw.uniform(0.3, 2.0)
