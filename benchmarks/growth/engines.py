"""The engines of a round, as processes: one plays every prefill rank, one the decode that wants every room.

Run as ``python -m benchmarks.growth.engines CONFIG`` by benchmarks/harness.py. Their loops sleep until something is due
or arrives, so that what is measured is the registry and not the engines; what they use themselves is counted apart.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import etcd_pd

from ..harness import play

#: How long a room's KV cache waits until it is handed over and the room released, seconds.
HOLD_SECONDS = 0.1
#: How long before its registration a room is wanted, seconds.
EARLY_SECONDS = 0.05
#: How long after the last room the engines wait for what is on its way, seconds.
TAIL_SECONDS = 0.3


@dataclass(frozen=True)
class Place:
    """One prefill rank: the agent that it speaks to, and what it is called; dp_size 1 would need no registry."""

    socket_path: str
    instance: str
    dp_rank: int
    dp_size: int


@dataclass(frozen=True)
class Plan:
    """What happens in a round.

    Attributes:
        rate: rooms a second, spread over the places in turn.
        seconds: for how long.
        release: hand the rooms over; else they stay until their lease ends.
        first_room: of so many in a row; a room is never used twice, as agents remember those that were released.
        reason: where not empty, rooms are failed with it instead of registered.
    """

    rate: float
    seconds: float
    first_room: int = 10**18
    release: bool = True
    reason: str = ""

    @property
    def rooms(self) -> int:
        """How many rooms there are."""
        return int(self.rate * self.seconds)


class _Prefill:
    def __init__(self, places: list[Place], plan: Plan) -> None:
        self._plan, self._places = plan, places
        self._clients = [etcd_pd.connect(place.socket_path) for place in places]
        self._poll = select.epoll()
        self._by_descriptor: dict[int, etcd_pd.Client] = {}
        self._due: deque[tuple[float, etcd_pd.Client, int]] = deque()
        self._sent: list[float] = []
        self._registered: dict[int, float] = {}
        self._refused = 0
        self.announced = self._announce()

    def _announce(self) -> float:
        """Seconds until every place has its rank in etcd."""
        started = time.monotonic()
        for client, place in zip(self._clients, self._places, strict=True):
            client.prefill.announce(
                place.instance,
                rank=etcd_pd.Rank(place.dp_rank),
                topology=etcd_pd.Topology(dp=place.dp_size),
                launch_id="growth",
                addresses=[f"{place.instance[:200]}:8998"],
                ip="127.0.0.1",
                port=9,
            )
        waiting = list(self._clients)
        while waiting:
            time.sleep(0.002)
            for client in waiting:
                client.prefill.poll()
            waiting = [client for client in waiting if not client.prefill.epoch]
        self._by_descriptor = {client.fileno(): client for client in self._clients}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.EPOLLIN)
        return time.monotonic() - started

    def run(self, start: float) -> dict[str, Any]:
        """Every room at its time; what happened to each, by number, in monotonic seconds."""
        plan, count, end = self._plan, self._plan.rooms, start + self._plan.seconds + HOLD_SECONDS + TAIL_SECONDS
        sent = 0
        while (now := time.monotonic()) < end:
            while sent < count and start + sent / plan.rate <= now:
                self._take(sent, now)
                sent += 1
            while self._due and self._due[0][0] <= now:
                _, client, room = self._due.popleft()
                client.prefill.release(room)
            upcoming = start + sent / plan.rate if sent < count else end
            if self._due:
                upcoming = min(upcoming, self._due[0][0])
            for descriptor, _ in self._poll.poll(max(0.0, upcoming - time.monotonic())):
                self._hear(self._by_descriptor[descriptor])
        registered = list(self._registered.items())
        return {"sent": self._sent, "registered": registered, "refused": self._refused, "announced": self.announced}

    def _take(self, number: int, now: float) -> None:
        client = self._clients[number % len(self._clients)]
        self._sent.append(time.monotonic())
        if self._plan.reason:
            client.prefill.fail(self._plan.first_room + number, self._plan.reason)
            self._due.append((now + HOLD_SECONDS, client, self._plan.first_room + number))
            return
        try:
            client.prefill.register(self._plan.first_room + number)
        except etcd_pd.AgentBusy:
            self._refused += 1

    def _hear(self, client: etcd_pd.Client) -> None:
        now = time.monotonic()
        for event in client.prefill.poll():
            if isinstance(event, etcd_pd.Registered):
                self._registered[event.room - self._plan.first_room] = now
                if self._plan.release:
                    self._due.append((now + HOLD_SECONDS, client, event.room))
            elif isinstance(event, etcd_pd.Rejected):
                self._refused += 1


def _decode(socket_path: str, instances: list[str], plan: Plan) -> Callable[[float], list[tuple[int, float]]]:
    """Want every room a moment before it is registered; when each was answered, by number."""
    client = etcd_pd.connect(socket_path)
    client.decode.poll()

    def run(registrations_start: float) -> list[tuple[int, float]]:
        answered: dict[int, float] = {}
        start = registrations_start - EARLY_SECONDS
        end = registrations_start + plan.seconds + HOLD_SECONDS + TAIL_SECONDS
        wanted, count = 0, plan.rooms
        while (now := time.monotonic()) < end:
            while wanted < count and start + wanted / plan.rate <= now:
                try:
                    client.decode.want(instances[wanted % len(instances)], plan.first_room + wanted, timeout=60)
                except etcd_pd.AgentBusy:
                    pass  # it stays without an answer, and is counted so
                wanted += 1
            upcoming = start + wanted / plan.rate if wanted < count else end
            select.select([client.fileno()], [], [], max(0.0, upcoming - time.monotonic()))
            for event in client.decode.poll():
                if isinstance(event, etcd_pd.Resolved):
                    room = event.assignment.room
                elif isinstance(event, etcd_pd.Ended):
                    room = event.error.room
                else:
                    continue
                answered.setdefault(room - plan.first_room, time.monotonic())
                client.decode.done(instances[(room - plan.first_room) % len(instances)], room)
        return list(answered.items())

    return run


def _set_up(config: dict[str, Any]) -> Callable[[float], Any]:
    plan, places = Plan(**config["plan"]), [Place(**place) for place in config["places"]]
    if config["role"] == "prefill":
        return _Prefill(places, plan).run
    return _decode(config["socket_path"], [place.instance for place in places], plan)


if __name__ == "__main__":
    play(_set_up)
