"""A small world under faults: agents, prefill ranks, a decode, and everything that anybody was told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import etcd_pd
from etcd_pd import Client, EtcdPDError
from etcd_pd.core.keys import PrefillKey, RankKey
from etcd_pd.wire.values import ASSIGNED, Rank, RoomValue
from tests.chaos.history import Event

from .etcd import Etcd
from .loop import AWAKE, VirtualLoop, run
from .node import KEYS, Node
from .plan import SETTLED, Plan, Room
from .sockets import Network, joined

INSTANCE, ADDRESS = "p", "h:1"
#: How often engines look at their clients, also in the calm, and how long decode waits for a room, seconds.
LOOK, CALM_LOOK, PATIENCE = 0.002, 0.02, 10.0
#: How long the world goes on without faults before it is judged, seconds: longer than any wait.
CALM = 3 * PATIENCE
#: Longest that an agent is away, and that an engine is, seconds: shorter than a session's TTL, longer than any bound.
AWAY, LONG_AWAY = 3.0, 8.0
#: How many rooms may wait at an agent whose queue is short, at least: in the calm it suffices.
SHORTEST_QUEUE = 12
#: How soon a process that died is missed, unless it lingers, seconds.
MISSED = 1.0
#: Longest that an agent is stopped, seconds: longer than its session's TTL.
ASLEEP = 8.0
#: Longest that a node is gone, seconds: longer than its session's TTL. And when, in the calm, it is back at the latest:
#: before that is over which the calm begins with.
GONE = 12.0
#: One DP rank's process: its dp_rank and tp_rank.
Place = tuple[int, int]


@dataclass(eq=False)
class History:
    """What happened, and what it cost.

    Attributes:
        settled_at: when nothing had been done to the world for a while.
        events: in order of time, as :mod:`tests.chaos.history` has them.
        left: rooms that have a key in etcd at the end.
        unacknowledged: by engine, rooms whose release or failure was not acknowledged at the end.
        views: by agent, whether its rooms are etcd's at the end.
        strangers: agents that know of somebody who is not in etcd at the end, or not of somebody who is.
        missed: by agent, who it says is gone at the end, when all are back.
        former: keys of names that the instance has no more, at the end.
        unmissed: agents that do not miss a process which is killed after that.
        living: engines that live at the end.
        decodes: the agent of each decode.
        steps: packets and store calls.
        linger: how long ranks stay after their process has gone, seconds.
    """

    settled_at: float
    linger: float = 0.0
    events: list[Event] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    unacknowledged: dict[str, list[int]] = field(default_factory=dict)
    views: dict[str, bool] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    missed: dict[str, list[bytes]] = field(default_factory=dict)
    former: list[bytes] = field(default_factory=list)
    unmissed: list[str] = field(default_factory=list)
    living: set[str] = field(default_factory=set)
    decodes: dict[str, str] = field(default_factory=dict)
    steps: int = 0


class World:
    """Runs a plan."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self._plan, self._loop = plan, loop
        self._began = loop.time()
        self.history = History(self._began + plan.seconds + SETTLED, plan.linger)
        self._events = self.history.events
        self._network = Network(loop, random.Random(f"{plan.seed} packets"))
        draw = random.Random(f"{plan.seed} etcd")
        self._etcd = Etcd(loop, draw, self._record, KEYS, plan.tp)
        self._engines: dict[Place, Client] = {}
        self._deaths: Counter[Place] = Counter()
        self._launches, self._instance = 1, INSTANCE
        self._ids: dict[Place, str] = {}  # under which name of the instance each engine is announced
        self._moves = any(fault.kind == "instance moves" for fault in plan.faults)  # so nobody knows its name
        self._stopped_until: dict[Place, float] = {}
        self._endings: dict[Place, set[int]] = {}  # rooms whose release or failure was not acknowledged yet
        self._requests: dict[int, Room] = {}
        self._coming = [list(lot) for _, lot in groupby(plan.rooms, lambda room: room.lot or room)]
        self._coming.reverse()
        self.history.decodes = {f"d{number}": agent for number, agent in enumerate(plan.size.decode_agents)}
        self._decode_of: dict[int, str] = {}
        self._views = dict.fromkeys(self.history.decodes, ("", 0.0))
        self._busy_until = self._began + plan.seconds
        self._again, self._again_until = random.Random(f"{plan.seed} again"), 0.0
        self._lives: Counter[int] = Counter()  # how often a room was taken, and nobody was refused

    async def run(self) -> History:
        """All of it, and the calm after it."""
        with joined(self._network):
            size = self._plan.size
            self._nodes = {name: Node(name, self._etcd, prefill_only=True) for name in size.prefill_agents}
            self._nodes |= {name: Node(name, self._etcd, prefill_only=False) for name in size.decode_agents}
            paths = {who: self._nodes[agent].path for who, agent in self.history.decodes.items()}
            self._decodes = {who: Client(path, None, 10_000) for who, path in paths.items()}
            for dp_rank in range(self._plan.ranks):
                for tp_rank in range(self._plan.tp):
                    self._start_engine((dp_rank, tp_rank))
            tasks = [self._loop.create_task(part) for part in (self._etcd.run(), self._harm())]
            await self._live()
            tasks[0].cancel()
            await tasks[1]
            await self._finish()
        return self.history

    # --- the engines

    async def _live(self) -> None:
        end = self._began + self._plan.seconds + CALM
        idle = waits = False
        while (now := self._loop.time()) < end:
            while self._coming and self._began + self._coming[-1][0].due <= now:
                self._request(self._coming.pop())
                idle = False
            if waits or not idle:
                waits = self._look_at_engines(now)
            for who, client in self._decodes.items():
                for decoded in client.decode.poll():
                    self._on_decode(who, decoded)
                self._look(who, client, now)
            pause = LOOK if now < self._busy_until else CALM_LOOK
            idle = self._loop.pass_idly(pause)
            if not idle:
                await asyncio.sleep(pause)

    def _look_at_engines(self, now: float) -> bool:
        """Whether time alone changes what one sees: until it goes on, or connects anew."""
        waits = False
        for place, client in list(self._engines.items()):
            if self._stopped_until.get(place, 0.0) > now:
                waits = True
                continue
            for event in client.prefill.poll():
                self._on_prefill(place, event)
            self._note_durable(place, client)
            waits = waits or client.state == "connecting"
        return waits

    def _note_durable(self, place: Place, client: Client) -> None:
        """Record which rooms' ends a rank of one process was told are in etcd, and what is there of them.

        A sibling's agent, which has not released the room yet, may have written it again; and under an epoch that is
        over, of which its process may not know yet, the key is nobody's room any more and goes with its lease.
        """
        if self._plan.tp > 1 or not (client.prefill._intents.endings or self._endings.get(place)):
            return
        id = self._ids[place]
        rank = self._etcd.keys.get(KEYS.rank(id, Rank(place[0])))
        ours = rank is not None and rank.mod_revision > self._etcd.begun_at  # else a backup's
        lives = ours and rank is not None and rank.create_revision == client.prefill.epoch
        before, epoch = self._endings.get(place, set()), client.prefill.epoch
        now = {room for _, room, *_ in client.prefill._intents.endings}
        for room in sorted(room for room in before - now if self._lives[room] < 2):  # else its next life may stand
            kv = self._etcd.keys.get(KEYS.room(id, room))
            value = RoomValue.from_json(kv.value) if kv else None
            stands = lives and value is not None and (value.state, value.epoch) == (ASSIGNED, epoch)
            self._say(self._who(place), "durable", room, stands=stands)
        self._endings[place] = now

    def _look(self, who: str, client: Client, now: float) -> None:
        """Record what a decode's view is where its state has changed, and now and then its revision."""
        view, (before, looked_at) = client.decode.view, self._views[who]
        if view != before or now - looked_at > 0.1:
            self._views[who] = view, now
            self._say(who, "view", view=view, revision=client.decode.revision)

    def _request(self, lot: list[Room]) -> None:
        """Decode waits for the rooms; each process of their DP rank registers them, and the first may fail some."""
        for request in lot:
            who = self._decode_of.setdefault(request.room, f"d{len(self._requests) % len(self._decodes)}")
            self._requests[request.room] = request
            self._lives[request.room] += 1
            self._say(who, "want", request.room, timeout=PATIENCE)
            named = request.dp_rank if request.named else None
            self._decodes[who].decode.want(self._name(request), request.room, timeout=PATIENCE, dp_rank=named)
        for place in self._processes(lot[0].dp_rank):
            self._register(place, lot)

    def _register(self, place: Place, lot: list[Room]) -> None:
        who, prefill, dp_rank = self._who(place), self._engines[place].prefill, place[0]
        for request in lot:
            self._say(who, "register", request.room, dp_rank=dp_rank)
        try:
            if len(lot) > 1:
                prefill.register_lot([request.room for request in lot])
            else:
                prefill.register(lot[0].room)
            for request in lot:
                if request.fails and place[1] == 0:
                    prefill.fail(request.room, "planned")
                    self._say(who, "fail", request.room, dp_rank=dp_rank)
        except EtcdPDError as exc:
            for request in lot:
                self._say(who, "rejected", request.room, dp_rank=dp_rank, error=type(exc).__name__)

    def _on_prefill(self, place: Place, event: Any) -> None:
        who, dp_rank = self._who(place), place[0]
        if isinstance(event, etcd_pd.Registered):
            own = {"epoch": event.epoch, "token": event.token, "lease": event.lease_id}
            self._say(who, "registered", event.room, dp_rank=dp_rank, **own)
        elif isinstance(event, etcd_pd.Rejected):
            self._say(who, "rejected", event.room, dp_rank=dp_rank, error=type(event.error).__name__)
        elif isinstance(event, etcd_pd.Announced):
            self._say(who, "announced", dp_rank=dp_rank, epoch=event.epoch)
        elif isinstance(event, etcd_pd.RankEnded):
            self._say(who, "rank_ended", dp_rank=dp_rank, epoch=event.epoch)

    def _on_decode(self, who: str, event: Any) -> None:
        if isinstance(event, etcd_pd.Resolved):
            found = event.assignment
            said = {"dp_rank": found.dp_rank, "epoch": found.epoch, "revision": found.revision, "stale": found.stale}
            self._say(who, "resolved", found.room, **said)
            if self._requests[found.room].lets_go:
                self._fetched(found.room, found.dp_rank)
        elif isinstance(event, etcd_pd.Ended):
            facts = ("dp_rank", "epoch", "withdrawn")
            lost = {name: getattr(event.error, name) for name in facts if hasattr(event.error, name)}
            self._say(who, "ended", event.error.room, error=type(event.error).__name__, **lost)
            self._done(event.error.room)

    def _fetched(self, room: int, dp_rank: int) -> None:
        """Decode has the KV cache: every process of the rank lets the room go."""
        self._done(room)
        released = self._processes(dp_rank)
        for place in released:
            self._engines[place].prefill.release(room)
            self._say(self._who(place), "release", room, dp_rank=dp_rank)
        request = self._requests[room]
        if not released:
            return  # a lingering rank still holds it: this life has not ended
        may_again = self._plan.tp == 1 and not (self._moves or request.lot or request.fails)
        if self._loop.time() < self._again_until and may_again:
            self._loop.call_later(0.6 * self._again.random() ** 2, self._request, [request])

    def _done(self, room: int) -> None:
        who = self._decode_of[room]
        self._decodes[who].decode.done(self._name(self._requests[room]), room)
        self._say(who, "done", room)

    def _processes(self, dp_rank: int) -> list[Place]:
        """Those of a DP rank that are there."""
        return [place for place in self._engines if place[0] == dp_rank]

    def _name(self, request: Room) -> str:
        """What the request calls its instance."""
        return ADDRESS if request.by_address or self._moves else INSTANCE

    def _start_engine(self, place: Place) -> None:
        dp_rank, tp_rank = place
        client = self._engines[place] = Client(self._nodes[self._plan.agent_of(dp_rank, tp_rank)].path, None, 10_000)
        self._ids[place] = self._instance
        client.prefill.announce(
            self._instance,
            rank=etcd_pd.Rank(dp_rank, 0, tp_rank),
            topology=etcd_pd.Topology(dp=self._plan.size.dp, tp=self._plan.tp),
            launch_id=f"launch-{self._launches}",
            addresses=[ADDRESS],
            policy=self._plan.policy,
            linger=self._plan.linger,
            ip="10.0.0.1",
            port=5000 + 10 * dp_rank + tp_rank,
        )

    def _kill_engine(self, place: Place, seconds: float) -> None:
        """As SIGKILL does; another process takes its place some time later, in the same start of the instance."""
        if place in self._engines:  # else it is dead already
            self._say(self._who(place), "killed", dp_rank=place[0])
            self._engines.pop(place).detach()
            self._endings.pop(place, None)
            self._deaths[place] += 1
            self._loop.call_later(seconds, self._start_engine, place)

    def _who(self, place: Place) -> str:
        """A process, as the history calls it."""
        return "r{}.{}.{}".format(*place, self._deaths[place])

    # --- the faults

    async def _harm(self) -> None:
        for fault in self._plan.faults:
            await asyncio.sleep(max(0.0, self._began + fault.at - self._loop.time()))
            if self._loop.time() > self._began + self._plan.seconds:
                return  # those before it waited for an agent to wake up, and now all is to become calm
            done = {"name": fault.kind, "agent": fault.agent}
            self._events.append(Event(self._loop.time(), "nemesis", "fault", done))
            act = getattr(self, "_do_" + fault.kind.replace(" ", "_"))(self._nodes[fault.agent], fault.luck)
            if act is not None:
                await act

    async def _do_kill(self, node: Node, luck: float) -> None:
        if node.runs:
            await node.kill()
            self._loop.call_later(0.01 + AWAY * luck * luck, node.start)

    async def _do_terminate(self, node: Node, luck: float) -> None:
        if node.runs:
            await node.terminate()
            self._loop.call_later(0.01 + AWAY * luck * luck, node.start)

    async def _do_queue_is_short(self, node: Node, luck: float) -> None:
        """Its settings change, for which it ends in peace and starts anew."""
        node.limit_queue(SHORTEST_QUEUE + int(10 * luck))
        if node.runs:
            await node.terminate()
            node.start()

    def _do_watches_end(self, node: Node, luck: float) -> None:
        for store in self._etcd.stores:
            store.drop_watches()

    def _do_watches_held(self, node: Node, luck: float) -> None:
        self._etcd.held_until = self._loop.time() + 0.05 + 0.8 * luck

    def _do_answers_lost(self, node: Node, luck: float) -> None:
        self._etcd.unknown_until = self._loop.time() + 0.3

    def _do_etcd_freezes(self, node: Node, luck: float) -> None:
        self._etcd.frozen_until = self._loop.time() + 0.1 + 8 * luck

    def _do_etcd_is_busy(self, node: Node, luck: float) -> None:
        self._etcd.busy_until = self._loop.time() + 0.1 + 2 * luck

    def _do_etcd_is_full(self, node: Node, luck: float) -> None:
        self._etcd.full_until = self._loop.time() + 0.1 + 3 * luck

    def _do_compaction(self, node: Node, luck: float) -> None:
        self._etcd.held_until = self._loop.time() + 0.05 + 2 * luck
        self._loop.call_at(self._etcd.held_until, self._etcd.forget_history)

    def _do_etcd_is_restored(self, node: Node, luck: float) -> None:
        self._etcd.back_up()
        self._loop.call_later(0.1 + 5 * luck * luck, self._etcd.restore, context=AWAKE)

    def _do_leader_changes(self, node: Node, luck: float) -> None:
        self._etcd.change_leader()

    def _do_rooms_used_again(self, node: Node, luck: float) -> None:
        self._again_until = self._loop.time() + 0.2 + 3 * luck

    def _do_store_moves(self, node: Node, luck: float) -> None:
        node.store.move()

    def _do_session_revoked(self, node: Node, luck: float) -> None:
        self._etcd.end_lease(node.agent.session.lease_id)

    def _do_agent_asleep(self, node: Node, luck: float) -> None:
        if node.runs:
            node.sleep(ASLEEP * luck)
            until = self._loop.time() + ASLEEP * luck
            self._events.append(Event(self._loop.time(), node.name, "asleep", {"until": until}))

    def _do_connection_cut(self, node: Node, luck: float) -> None:
        """As that of an engine that does not read."""
        node.cut_connection(luck, self._note_cut)

    def _note_cut(self, rank: Rank) -> None:
        place = rank.dp, rank.tp
        self._say("nemesis", "cut", dp_rank=rank.dp, process=self._who(place))

    def _do_engine_killed(self, node: Node, luck: float) -> None:
        self._kill_engine(self._place(luck), LONG_AWAY if luck > 0.7 else luck)

    def _do_instance_restarts(self, node: Node, luck: float) -> None:
        """All of its processes die, and another start takes its name."""
        self._say("nemesis", "restarted")
        self._launches += 1
        for place in list(self._engines):
            self._kill_engine(place, luck)

    def _do_instance_moves(self, node: Node, luck: float) -> None:
        """Another instance takes its address, as a pod that is made anew, of another name."""
        self._instance = f"{INSTANCE}{self._launches}"
        self._do_instance_restarts(node, luck)

    async def _do_node_dies(self, node: Node, luck: float) -> None:
        """An agent and the engines beside it; then all of the instance starts again, as in a LeaderWorkerSet."""
        beside = [place for place in self._engines if self._plan.agent_of(*place) == node.name]
        if node.runs and beside:
            await node.kill()  # when it is awake
            away = min(GONE * luck, self._began + self._plan.seconds + GONE - self._loop.time())
            for place in beside:
                self._kill_engine(place, away + luck)
            self._loop.call_later(away, node.start)
            self._loop.call_later(away, self._do_instance_restarts, node, luck)

    def _do_engine_drains(self, node: Node, luck: float) -> None:
        place = self._place(luck)
        if place in self._engines:
            self._engines[place].prefill.drain()
            self._loop.call_later(luck, self._kill_engine, place, 0.1)

    def _do_engine_stopped(self, node: Node, luck: float) -> None:
        place, until = self._place(luck), self._loop.time() + 4 * luck
        self._stopped_until[place] = until
        self._say(self._who(place), "stopped", until=until)

    def _place(self, luck: float) -> Place:
        places = [(dp_rank, tp_rank) for dp_rank in range(self._plan.ranks) for tp_rank in range(self._plan.tp)]
        return places[int(luck * len(places))]

    # --- the end

    async def _finish(self) -> None:
        self.history.views = {name: node.agrees() for name, node in self._nodes.items()}
        rooms = [key for key in self._etcd.keys if key.startswith(KEYS.rooms())]
        self.history.former = [key for key in self._etcd.keys if self._has_moved(key)]
        self.history.left = {int(key.rpartition(b"/")[2]) for key in rooms}
        self.history.living = {self._who(place) for place in self._engines}
        for place, client in self._engines.items():
            self.history.unacknowledged[self._who(place)] = [room for _, room, *_ in client.prefill._intents.endings]
        await self._look_at_rosters()
        for node in self._nodes.values():
            await node.kill()
        for client in (*self._engines.values(), *self._decodes.values()):
            client.close()
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine:
                task.cancel()
        await asyncio.sleep(0.01)
        self.history.steps = self._network.delivered + 2 * self._etcd.calls

    async def _look_at_rosters(self) -> None:
        """Who is known and missed when all are back, and when one more has died, which no other rule judges."""
        self.history.strangers = [name for name, node in self._nodes.items() if not node.knows_all()]
        for name, node in self._nodes.items():
            self.history.missed[name] = [key for key in node.missed() if not self._has_moved(key)]
        self.history.events = list(self.history.events)  # what follows is written into the list from before
        (dp_rank, tp_rank), client = next(iter(self._engines.items()))
        client.detach()
        await asyncio.sleep(self._plan.linger + MISSED)
        id = self._ids[dp_rank, tp_rank]
        dead = (KEYS.rank(id, Rank(dp_rank, 0, tp_rank)), KEYS.prefill(id))
        for name, node in self._nodes.items():
            if not any(node.missed().get(key) is False for key in dead):
                self.history.unmissed.append(name)

    def _has_moved(self, key: bytes) -> bool:
        """Whether a key is of a name that the instance has no more: that one is gone for good."""
        parsed = KEYS.parse(key)
        return isinstance(parsed, (PrefillKey, RankKey)) and parsed.instance != self._instance

    def _say(self, who: str, what: str, room: int | None = None, **data: Any) -> None:
        if room is not None:
            data["room"] = room
        self._record(Event(self._loop.time(), who, what, {"instance": INSTANCE, **data}))

    def _record(self, event: Event) -> None:
        """Those of one address are one instance to the judge: no room is sent to two of them."""
        owner = event.data.get("instance", INSTANCE)
        if owner != INSTANCE:
            event.data.update(instance=INSTANCE, owner=owner)
        self._events.append(event)


def simulate(plan: Plan) -> History:
    """What happens in a plan's world; the same every time."""
    return run(plan.seed, lambda loop: World(plan, loop).run())
