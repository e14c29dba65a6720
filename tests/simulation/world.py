"""A small world under faults: agents, a prefill rank or more, a decode, and everything that anybody was told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import etcd_pd
from etcd_pd import Client, EtcdPDError
from etcd_pd.agent.agent import Agent
from etcd_pd.config import AgentSettings
from etcd_pd.keys import Keys
from tests.chaos.history import Event

from .etcd import Etcd, Store
from .loop import VirtualLoop, run
from .sockets import Network, joined

ROOT, INSTANCE = "/cell", "p"
KEYS = Keys(ROOT)
#: TTL of the agents' sessions, seconds; how often engines look at their clients; how long decode waits for a room.
TTL, LOOK, PATIENCE = 5, 0.002, 10.0
#: How long the world goes on without faults before it is judged, seconds: longer than any wait.
CALM = 3 * PATIENCE
#: When, in the calm, there are rooms again, which nothing may keep from being served, and for how long, seconds.
SETTLED, SERVED = 15.0, 2.0
#: What may be done to a world.
FAULTS = (
    *("kill", "terminate", "watches end", "watches held"),
    *("answers lost", "etcd freezes", "session revoked", "compaction"),
    *("leader changes", "engine killed"),
)
#: When it is due, the room, which rank takes it, whether it fails, whether decode lets go of it at once.
Room = tuple[float, int, int, bool, bool]


@dataclass(frozen=True)
class Plan:
    """All that a seed decides, drawn before anything runs, so that one fault less changes nothing else.

    Attributes:
        seed: of delays.
        rooms: when each room is due, which rank takes it, whether it fails, and whether decode lets go of it at once.
        faults: when what happens, to which agent, and for how long.
        seconds: how long there are rooms and faults.
    """

    seed: int
    ranks: int
    rooms: tuple[Room, ...]
    faults: tuple[tuple[float, str, str, float], ...]
    seconds: float

    @classmethod
    def draw(cls, seed: int, *, seconds: float = 20.0, rate: float = 50.0, kinds: Sequence[str] = FAULTS) -> Plan:
        """From a seed; swarm testing: each world has some kinds of faults only."""
        rooms, faults = random.Random(f"{seed} rooms"), random.Random(f"{seed} faults")
        ranks = 1 + seed % 2
        chosen = [kind for kind in kinds if faults.random() < 0.6] or list(kinds)
        settled = seconds + SETTLED
        due = [*_rooms(rooms, ranks, 0.5, seconds, rate), *_rooms(rooms, ranks, settled, settled + SERVED, rate)]
        return cls(seed, ranks, tuple(due), tuple(_faults(faults, chosen, seconds)), seconds)


def _rooms(draw: random.Random, ranks: int, due: float, end: float, rate: float) -> Iterator[Room]:
    while due < end:
        yield due, draw.getrandbits(63), draw.randrange(ranks), draw.random() < 0.05, draw.random() < 0.7
        due += draw.expovariate(rate)


def _faults(draw: random.Random, kinds: Sequence[str], seconds: float) -> Iterator[tuple[float, str, str, float]]:
    at = 2.0
    while at < seconds:
        yield at, draw.choice(kinds), draw.choice(("prefill", "decode")), draw.random()
        at += draw.uniform(0.3, 2.0)


@dataclass
class History:
    """What happened, and what it cost.

    Attributes:
        settled_at: when nothing had been done to the world for a while.
        events: in order of time, as :mod:`tests.chaos.history` has them.
        left: rooms that have a key in etcd at the end.
        views: by agent, whether its rooms are etcd's at the end.
        living: engines that live at the end.
        steps: packets and store calls.
    """

    settled_at: float
    events: list[Event] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    views: dict[str, bool] = field(default_factory=dict)
    living: set[str] = field(default_factory=set)
    steps: int = 0


class Node:
    """An agent that may be killed, ended and started again."""

    def __init__(self, name: str, etcd: Etcd) -> None:
        self.name, self._etcd = name, etcd
        self.start()

    def start(self) -> None:
        """Start an agent on the node's socket."""
        self.store, self._stop = Store(self._etcd), asyncio.Event()
        settings = AgentSettings(
            socket_path=f"/sim/{self.name}", root=ROOT, agent_id=self.name, session_ttl_seconds=TTL, metrics_listen=""
        )
        self.agent = Agent(settings, self.store)
        self._running = asyncio.get_running_loop().create_task(self.agent.run(self._stop))

    async def kill(self) -> None:
        """As SIGKILL does."""
        self.store.die()
        self.agent.server.close()
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def terminate(self) -> None:
        """As SIGTERM does."""
        self._stop.set()
        await self._running
        self.store.leave()


class World:
    """Runs a plan."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self._plan, self._loop = plan, loop
        self._began = loop.time()
        self._view, self._looked_at = "", 0.0
        self._prefills: dict[int, Client] = {}
        self._deaths: Counter[int] = Counter()
        self.history = History(settled_at=loop.time() + plan.seconds + SETTLED)
        self._network = Network(loop, random.Random(f"{plan.seed} packets"))
        self._etcd = Etcd(loop, random.Random(f"{plan.seed} etcd"), self.history.events.append, KEYS)

    async def run(self) -> History:
        """All of it, and the calm after it."""
        with joined(self._network):
            self._nodes = {name: Node(name, self._etcd) for name in ("prefill", "decode")}
            self._decode = Client("/sim/decode", None, 10_000)
            for rank in range(self._plan.ranks):
                self._start_engine(rank)
            ending = self._loop.create_task(self._etcd.run())
            harm = self._loop.create_task(self._harm())
            await self._live()
            await harm
            ending.cancel()
            await self._finish()
        return self.history

    # --- the engines

    async def _live(self) -> None:
        rooms = iter(self._plan.rooms)
        room = next(rooms, None)
        end = self._began + self._plan.seconds + CALM
        while (now := self._loop.time()) < end:
            while room is not None and self._began + room[0] <= now:
                self._request(*room[1:])
                room = next(rooms, None)
            for rank, client in list(self._prefills.items()):
                for event in client.prefill.poll():
                    self._on_prefill(rank, event)
            for decoded in self._decode.decode.poll():
                self._on_decode(decoded)
            self._look(now)
            await asyncio.sleep(LOOK)

    def _look(self, now: float) -> None:
        """Record what decode's view is where its state has changed, and now and then its revision."""
        view = self._decode.decode.view
        if view != self._view or now - self._looked_at > 0.1:
            self._view, self._looked_at = view, now
            self._say("d0", "view", view=view, revision=self._decode.decode.revision)

    def _request(self, room: int, rank: int, fails: bool, _: bool) -> None:
        """A router's request: decode waits for the room, prefill registers it, and may fail it at once."""
        self._say("d0", "want", room, timeout=PATIENCE)
        self._decode.decode.want(INSTANCE, room, timeout=PATIENCE)
        if rank not in self._prefills:
            return  # its process is gone, and the request with it
        self._say(self._who(rank), "register", room, dp_rank=rank)
        try:
            self._prefills[rank].prefill.register(room)
            if fails:
                self._prefills[rank].prefill.fail(room, "planned")
                self._say(self._who(rank), "fail", room, dp_rank=rank)
        except EtcdPDError as exc:
            self._say(self._who(rank), "rejected", room, dp_rank=rank, error=type(exc).__name__)

    def _on_prefill(self, rank: int, event: Any) -> None:
        who = self._who(rank)
        if isinstance(event, etcd_pd.Registered):
            own = {"epoch": self._prefills[rank].prefill.epoch, "token": event.token, "lease": event.lease_id}
            self._say(who, "registered", event.room, dp_rank=rank, **own)
        elif isinstance(event, etcd_pd.Rejected):
            self._say(who, "rejected", event.room, dp_rank=rank, error=type(event.error).__name__)
        elif isinstance(event, etcd_pd.Announced):
            self._say(who, "announced", dp_rank=rank, epoch=event.epoch)
        elif isinstance(event, etcd_pd.RankEnded):
            self._say(who, "rank_ended", dp_rank=rank, epoch=event.epoch)

    def _on_decode(self, event: Any) -> None:
        if isinstance(event, etcd_pd.Resolved):
            found = event.assignment
            told = {"dp_rank": found.dp_rank, "epoch": found.epoch, "revision": found.revision, "stale": found.stale}
            self._say("d0", "resolved", found.room, **told)
            if self._lets_go.get(found.room):
                self._done(found.room)
                if found.dp_rank in self._prefills:
                    self._prefills[found.dp_rank].prefill.release(found.room)
                    self._say(self._who(found.dp_rank), "release", found.room)
        elif isinstance(event, etcd_pd.Ended):
            lost = {name: getattr(event.error, name) for name in ("dp_rank", "epoch") if hasattr(event.error, name)}
            self._say("d0", "ended", event.error.room, error=type(event.error).__name__, **lost)
            self._done(event.error.room)

    def _done(self, room: int) -> None:
        self._decode.decode.done(INSTANCE, room)
        self._say("d0", "done", room)

    @property
    def _lets_go(self) -> dict[int, bool]:
        return {room: lets_go for _, room, _, _, lets_go in self._plan.rooms}

    def _start_engine(self, rank: int) -> None:
        client = self._prefills[rank] = Client("/sim/prefill", None, 10_000)
        client.prefill.announce(
            INSTANCE,
            rank=etcd_pd.Rank(rank),
            topology=etcd_pd.Topology(dp=4),
            launch_id="launch",
            addresses=["h:1"],
            ip="10.0.0.1",
            port=5000 + rank,
        )

    async def _kill_engine(self, rank: int, seconds: float) -> None:
        """As SIGKILL does; another process takes its place in the same start of the instance."""
        self._prefills.pop(rank).detach()
        self._deaths[rank] += 1
        await asyncio.sleep(seconds)
        self._start_engine(rank)

    def _who(self, rank: int) -> str:
        """A rank's process, as the history calls it."""
        return f"r{rank}.{self._deaths[rank]}"

    # --- the faults

    async def _harm(self) -> None:
        for at, kind, name, luck in self._plan.faults:
            await asyncio.sleep(max(0.0, self._began + at - self._loop.time()))
            self.history.events.append(Event(self._loop.time(), "nemesis", "fault", {"name": kind, "agent": name}))
            await self._fault(kind, self._nodes[name], luck)

    async def _fault(self, kind: str, node: Node, luck: float) -> None:
        now = self._loop.time()
        if kind in ("kill", "terminate"):
            await (node.kill() if kind == "kill" else node.terminate())
            await asyncio.sleep(0.01 + 0.3 * luck)
            node.start()
        elif kind == "watches end":
            for store in self._etcd.stores:
                store.drop_watches()
        elif kind == "watches held":
            self._etcd.held_until = now + 0.05 + 0.8 * luck
        elif kind == "answers lost":
            self._etcd.unknown_until = now + 0.3
        elif kind == "etcd freezes":
            self._etcd.frozen_until = now + 0.1 + 8 * luck
        elif kind == "compaction":
            self._etcd.compact()
        elif kind == "leader changes":
            self._etcd.change_leader()
        elif kind == "engine killed":
            await self._kill_engine(int(luck * self._plan.ranks), 0.5 * luck)
        else:
            self._revoke(node)

    def _revoke(self, node: Node) -> None:
        lease = node.agent.session.lease_id
        if lease in self._etcd.leases():
            self._etcd.revoke(lease)
            self._etcd.publish()

    # --- the end

    async def _finish(self) -> None:
        for name, node in self._nodes.items():
            rooms = {key for key in self._etcd.keys if key.startswith(KEYS.rooms())}
            self.history.views[name] = set(node.agent.view._rooms) == rooms
            self.history.left = {int(key.rpartition(b"/")[2]) for key in rooms}
        self.history.living = {self._who(rank) for rank in self._prefills}
        for node in self._nodes.values():
            await node.kill()
        for client in (*self._prefills.values(), self._decode):
            client.close()
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine:
                task.cancel()
        await asyncio.sleep(0.01)
        self.history.steps = self._network.delivered + 2 * self._etcd.calls

    def _say(self, who: str, what: str, room: int | None = None, **data: Any) -> None:
        if room is not None:
            data["room"] = room
        self.history.events.append(Event(self._loop.time(), who, what, {"instance": INSTANCE, **data}))


def simulate(plan: Plan) -> History:
    """What happens in a plan's world; the same every time."""
    return run(plan.seed, lambda loop: World(plan, loop).run())
