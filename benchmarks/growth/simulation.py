"""A discrete simulation of rooms on their way: register, batch, commit, fan-out, network, proxy, agent.

Every room and transaction is an event of its own. Of the watchers a few are followed, each a queue of its own: all
hear the same, so that they stand for the rest; which place each has in a fan-out is drawn for every transaction. All
times are the measured costs; what waits for what decides the rest.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from .costs import Costs
from .model import MAX_BATCH, Cell, Hardware, load, utilisation

#: A room is released so long after it was registered, seconds: as in the measured rounds.
HOLD_SECONDS = 0.1
#: So long a release waits for a registration to ride with, seconds: as in the agent.
RELEASE_DELAY_SECONDS = 0.1
#: Watchers that are followed.
FOLLOWED = 12
#: So much of the time at most that an agent spends on hearing keeps it from writing: it takes both in turn.
MOST_HEARING = 0.95
#: How long what was heard is taken as if the simulation had begun earlier, seconds: nothing is busy at once.
WARM_SECONDS = 0.2
#: Where a resource is busier than this, no steady state is waited for.
HOPELESS = 0.97


@dataclass(order=True)
class _Event:
    at: float
    number: int
    agent: int = field(compare=False)
    happens: str = field(compare=False)  # "answered", "released" or "overdue"


class _Writer:
    """A prefill agent: one transaction in flight, holding whatever queued during the last one."""

    def __init__(self) -> None:
        self.queue: list[float | None] = []  # when each registration was born; None: a release
        self.in_flight: list[float | None] = []
        self.overdue_at = math.inf  # when a release has waited long enough for a registration

    def has_reason(self, now: float) -> bool:
        """Whether a transaction is to be written."""
        return not self.in_flight and (now >= self.overdue_at or any(born is not None for born in self.queue))


class Simulation:
    """One run.

    Args:
        at: the cell.
        costs: measured.
        hardware: assumed.
        seed: decides arrivals and places.
        shared: all agents run on etcd's cores, as on the machine that was measured.
    """

    def __init__(self, at: Cell, costs: Costs, hardware: Hardware, seed: int = 1, shared: bool = False) -> None:
        self._cell, self._costs, self._hardware = at, costs, hardware
        self._random = random.Random(seed)
        self._shared = shared
        self._load = load(at, costs, hardware)
        self._writers: dict[int, _Writer] = {}
        self._events: list[_Event] = []
        self._number = 0
        self._write_free = self._fan_out_free = 0.0
        self._heard = 0.0  # seconds of each agent
        self._proxy_free = [0.0] * FOLLOWED
        self._agent_free = [0.0] * FOLLOWED
        self._fan_out_cores = max(hardware.etcd_cores - self._writing(), 0.05)
        self.latencies: list[float] = []
        self.batches: list[int] = []

    def _writing(self) -> float:
        """Cores that are taken by transactions, and where they are shared, by whoever sends them."""
        costs, doing = self._costs, self._load
        cores = costs.commit(doing.txns) + max(doing.writes - doing.txns, 0.0) * costs.etcd_write
        if self._shared:
            cores += doing.txns * costs.writer_txn + self._cell.rooms * costs.writer_room
        return cores

    def run(self, rooms: int) -> list[float]:
        """Seconds from register() to resolved of each room but the first tenth, in the order of their fan-out."""
        arrivals = self._arrivals(rooms)
        upcoming = next(arrivals, None)
        while upcoming is not None or self._events:
            if upcoming is not None and (not self._events or upcoming <= self._events[0].at):
                self._queue(self._random.randrange(max(1, round(self._cell.prefills))), upcoming, upcoming)
                upcoming = next(arrivals, None)
                continue
            event = heapq.heappop(self._events)
            if event.happens == "answered":
                self._answered(event.agent, event.at)
            elif event.happens == "released":
                self._queue(event.agent, event.at, None)
            else:
                self._turn(event.agent, event.at)
        return self.latencies[len(self.latencies) // 10 :]

    def _arrivals(self, rooms: int) -> Iterator[float]:
        now = 0.0
        for _ in range(rooms):
            now += self._random.expovariate(self._cell.rooms)
            yield now

    def _later(self, at: float, agent: int, happens: str) -> None:
        self._number += 1
        heapq.heappush(self._events, _Event(at, self._number, agent, happens))

    def _queue(self, agent: int, now: float, born: float | None) -> None:
        writer = self._writers.setdefault(agent, _Writer())
        writer.queue.append(born)
        if born is None and writer.overdue_at == math.inf:
            writer.overdue_at = now + RELEASE_DELAY_SECONDS
            self._later(writer.overdue_at, agent, "overdue")
        self._turn(agent, now)

    def _turn(self, agent: int, now: float) -> None:
        writer = self._writers[agent]
        if writer.has_reason(now):
            self._write(agent, writer, now)

    def _write(self, agent: int, writer: _Writer, now: float) -> None:
        """The next transaction: etcd applies one after the other, then tells the writer and every watcher."""
        writer.in_flight, writer.queue = writer.queue[:MAX_BATCH], writer.queue[MAX_BATCH:]
        writer.overdue_at = now if writer.queue else math.inf  # what is left over goes next
        size = len(writer.in_flight)
        self.batches.append(size)
        costs = self._costs
        # where it watches, one loop does both: its own work waits as long as hearing keeps it busy
        hearing = (
            0.0
            if self._shared or not self._cell.prefills_watch
            else min(self._heard / (now + WARM_SECONDS), MOST_HEARING)
        )
        ready = now + hearing / (1 - hearing) * costs.agent_message + costs.writer_txn + size / 2 * costs.writer_room
        # it waits for its turn among etcd's work for the watchers, as all of etcd shares the same cores
        begun = max(ready, self._write_free, self._fan_out_free)
        self._write_free = begun + 1 / costs.most_commits + (size - 1) * costs.etcd_write
        # the delay is nobody's work, so that nothing else waits for it
        self._later(self._write_free + costs.delay, agent, "answered")
        resolved = self._fan_out(self._write_free, size)
        for born in writer.in_flight:
            if born is not None:
                self.latencies.append(self._random.choice(resolved) - born)

    def _answered(self, agent: int, now: float) -> None:
        writer = self._writers[agent]
        for born in writer.in_flight:
            if born is not None:
                self._later(now + HOLD_SECONDS, agent, "released")
        writer.in_flight = []
        self._turn(agent, now)

    def _fan_out(self, now: float, size: int) -> list[float]:
        """When each of the followed agents has heard of a transaction of so many writes."""
        costs, hardware, watchers = self._costs, self._hardware, self._load.watchers
        message = costs.etcd_message + size * costs.etcd_event
        hears = costs.agent_message + size * costs.agent_event
        if self._shared:
            message += hears
        self._heard += hears
        sent = watchers * (costs.bytes_message + size * costs.bytes_event)
        working = max(watchers * message / self._fan_out_cores, message)
        took = max(working, sent * 8 / (hardware.gigabits * 1e9))
        begun = max(now, self._fan_out_free)
        self._fan_out_free = begun + took
        times = []
        for one in range(FOLLOWED):
            at = begun + costs.delay + message + self._random.random() * (took - message if took > message else 0.0)
            if self._load.behind:
                at = self._through_proxy(one, at, size)
            if not self._shared:
                at = self._agent_free[one] = max(at, self._agent_free[one]) + hears
            times.append(at)
        return times

    def _through_proxy(self, one: int, at: float, size: int) -> float:
        costs = self._costs
        each = costs.proxy_message + size * costs.proxy_event
        begun = max(at, self._proxy_free[one])
        took = (costs.proxy_up + self._load.behind * each) / self._hardware.proxy_cores
        self._proxy_free[one] = begun + took
        return begun + self._random.random() * took


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        latencies: seconds from register() to resolved; None where a resource cannot keep up: no steady state comes.
        txns: transactions a second that the prefill agents came to write.
        shares: how busy each resource is with these.
    """

    latencies: list[float] | None
    txns: float
    shares: dict[str, float]


def simulate(at: Cell, costs: Costs, hardware: Hardware, rooms: int, shared: bool = False) -> Outcome:
    """Run one simulation of so many rooms."""
    run = Simulation(at, costs, hardware, shared=shared)
    found = run.run(rooms)
    txns = 2 * at.rooms * len(run.batches) / sum(run.batches)
    shares = utilisation(at, costs, hardware, txns)
    keeps_up = shared or max(shares.values()) <= HOPELESS
    return Outcome(found if keeps_up else None, txns, shares)
