"""An engine process under load, on the public client alone: a prefill rank or a decode that records what happens to it.

``python -m tests.chaos.workload JSON``, where JSON is an :class:`Engine`. All engines of a run know one timetable: who
takes which room when, as if a router had sent each request to a prefill rank and to a decode. A decode that has its
answer tells the rank, over UDP at the address that the registry names, that it fetched the KV cache; the rank then
releases the room.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import etcd_pd

from .history import Recorder

INSTANCE = "p0"
#: A rank that was frozen does not take requests that came longer ago than this; nor does one that has just started.
LATEST = 3.0
#: One room in this many is taken by two ranks at once, fails, or is held by its decode for seconds; of one in so many
#: the request itself names the rank.
CONTESTED, FAILING, LONG, NAMED = 50, 40, 13, 7
#: Of so many rooms these begin a lot of three: none of them is contested, and none fails.
LOT_EVERY, LOT_BEGINS, LOT = 100, 30, 3
#: Ranks whose keys stay for a while after their process, seconds: nobody takes them over, since ports differ.
LINGERS = {3: 1.0}


@dataclass(frozen=True)
class Timetable:
    """Who does what when.

    Args:
        seed: decides everything.
        start: when the first room is due, on the monotonic clock.
        rate: rooms a second.
        ranks, decodes: how many.
        timeout: seconds that a decode waits for a room.
        tp: processes of each rank.
        policy: how a room's rank is chosen.
    """

    seed: int
    start: float
    rate: float
    ranks: int
    decodes: int
    timeout: float
    tp: int = 1
    policy: str = "round_robin"

    @property
    def plain(self) -> bool:
        """Ranks are single processes that take what they like: rooms come in lots, and some are contested."""
        return self.tp == 1 and self.ranks > 1 and self.policy == "round_robin"

    def due(self, number: int) -> float:
        """When a room is due."""
        return self.start + number / self.rate

    def number_at(self, t: float) -> int:
        """The first room that is due at this time or later."""
        return max(0, int((t - self.start) * self.rate) + 1)

    def room(self, number: int) -> int:
        """The bootstrap room, which is anything in 64 bits."""
        return (number * 0x9E3779B97F4A7C15 + self.seed * 0xBF58476D1CE4E5B9) % 2**64

    def lot(self, number: int) -> range:
        """The rooms that are taken together with a room, and when it is due that are taken then."""
        begin = number - number % LOT_EVERY + LOT_BEGINS
        if not self.plain or not begin <= number < begin + LOT:
            return range(number, number + 1)
        return range(begin, begin + LOT) if number == begin else range(0)

    def owners(self, number: int) -> list[int]:
        """The ranks that take a room: one, or two where a dispatcher is at fault."""
        if not self.plain:
            return [self.room(number) % self.ranks]
        place = number % LOT_EVERY - LOT_BEGINS
        first = self.room(number - place if 0 <= place < LOT else number) % self.ranks
        return [first, (first + 1) % self.ranks] if number % CONTESTED == 0 else [first]


@dataclass(frozen=True)
class Engine:
    """One engine process.

    Args:
        role: ``prefill`` or ``decode``.
        index: its dp_rank, or which decode it is.
        name: what its history calls it.
        socket_path: its agent's.
        directory: where histories are, and the file ``last`` that says where the timetable ends.
        launch_id: of the prefill instance.
        recorded: keep a history.
        heartbeat: seconds, see etcd_pd.connect().
        tp_rank: of a prefill rank's processes, which.
    """

    role: str
    index: int
    name: str
    socket_path: str
    directory: str
    timetable: Timetable
    launch_id: str = ""
    recorded: bool = True
    heartbeat: float | None = 1.0
    tp_rank: int = 0

    def command(self) -> list[str]:
        """The command line that runs it."""
        return [sys.executable, "-m", "tests.chaos.workload", json.dumps(asdict(self))]

    @classmethod
    def from_json(cls, text: str) -> Engine:
        """What command() said."""
        data = json.loads(text)
        return cls(**{**data, "timetable": Timetable(**data["timetable"])})


class Turns:
    """The engine's loop: which rooms are due, how long it may sleep, and when it is over."""

    def __init__(self, engine: Engine) -> None:
        self.timetable = engine.timetable
        self._next = self.timetable.number_at(time.monotonic())
        self._last_file = Path(engine.directory) / "last"
        self._last: int | None = None
        self._look_at = 0.0
        self.ended = False  # by SIGTERM
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        self.ended = True

    def due(self, now: float) -> Iterator[int]:
        """The numbers of the rooms that have become due."""
        if self._last is None and now >= self._look_at:
            self._look_at = now + 0.1
            if self._last_file.exists():
                self._last = int(self._last_file.read_text())
        while not self.over and self.timetable.due(self._next) <= now:
            if now - self.timetable.due(self._next) < LATEST:
                yield self._next
            self._next += 1

    @property
    def over(self) -> bool:
        """No room is due any more."""
        return self._last is not None and self._next > self._last

    def sleep(self, client: etcd_pd.Client, *others: socket.socket) -> None:
        """Until something arrives, at most 5 ms."""
        descriptors = [client.fileno(), *(other.fileno() for other in others)]
        select.select([descriptor for descriptor in descriptors if descriptor >= 0], [], [], 0.005)


class PrefillEngine:
    """A prefill rank: registers its rooms, fails a few, releases what was fetched or kept for too long."""

    def __init__(self, engine: Engine, record: Recorder) -> None:
        self._engine, self._record = engine, record
        self._table = engine.timetable
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self._udp.setblocking(False)
        self._client = etcd_pd.connect(engine.socket_path, heartbeat=engine.heartbeat)
        self._keep: list[tuple[float, int]] = []  # when a room is released at the latest
        self._held: set[int] = set()
        self._failing: dict[int, float] = {}

    def run(self) -> None:
        """Until SIGTERM."""
        turns = Turns(self._engine)
        self._announce()
        with self._client, self._udp:
            while not turns.ended:
                now = time.monotonic()
                for number in turns.due(now):
                    if self._engine.index in self._table.owners(number):
                        self._take(self._table.lot(number))
                for event in self._client.prefill.poll():
                    self._hear(event, now)
                self._let_go(now, turns.over)
                self._record.flush()
                turns.sleep(self._client, self._udp)

    def _announce(self) -> None:
        self._client.prefill.announce(
            INSTANCE,
            rank=etcd_pd.Rank(self._engine.index, tp=self._engine.tp_rank),
            topology=etcd_pd.Topology(dp=self._table.ranks, tp=self._table.tp),
            policy=self._table.policy,
            launch_id=self._engine.launch_id,
            addresses=[f"{INSTANCE}.example:8998"],
            ip="127.0.0.1",
            port=self._udp.getsockname()[1],
            linger=LINGERS.get(self._engine.index, 0.0),
        )

    def _say(self, what: str, room: int, **data: object) -> None:
        self._record(what, instance=INSTANCE, dp_rank=self._engine.index, room=room, **data)

    def _intend(self, what: str, rooms: Sequence[int]) -> None:
        """Say what is sent next: in the history before a SIGKILL can come between."""
        for room in rooms:
            self._say(what, room)
        self._record.flush()

    def _take(self, numbers: range) -> None:
        rooms = [self._table.room(number) for number in numbers]
        self._intend("register", rooms)
        try:
            if len(rooms) == 1:
                self._client.prefill.register(rooms[0])
            elif rooms:
                self._client.prefill.register_lot(rooms)
        except (etcd_pd.AgentBusy, etcd_pd.NotAnnounced, etcd_pd.RankDraining) as exc:
            for room in rooms:
                self._say("rejected", room, error=type(exc).__name__)
        for number, room in zip(numbers, rooms, strict=True):
            if number % FAILING == 7 and self._engine.tp_rank == 0:
                self._failing[room] = number

    def _hear(self, event: etcd_pd.PrefillEvent, now: float) -> None:
        if isinstance(event, etcd_pd.Registered):
            self._say("registered", event.room, token=event.token, lease=event.lease_id, epoch=event.epoch)
            self._held.add(event.room)
            heapq.heappush(self._keep, (now + self._table.timeout + 5.0, event.room))
            if self._failing.pop(event.room, None) is not None:
                self._intend("fail", [event.room])
                self._client.prefill.fail(event.room, "planned")
        elif isinstance(event, etcd_pd.Rejected):
            self._say("rejected", event.room, error=type(event.error).__name__)
        elif isinstance(event, etcd_pd.Announced):
            self._record("announced", instance=INSTANCE, dp_rank=self._engine.index, epoch=event.epoch)
        elif isinstance(event, etcd_pd.RankEnded):
            self._record("rank_ended", instance=INSTANCE, dp_rank=self._engine.index, epoch=event.epoch)
            self._held.clear()
        elif isinstance(event, etcd_pd.Refused):
            self._record("refused", error=str(event.error))
            self._announce()

    def _let_go(self, now: float, over: bool) -> None:
        """Release what was fetched, and what nobody fetches; at the end nothing changes any more, to be compared."""
        while True:
            try:
                room = int(self._udp.recv(64))
            except BlockingIOError:
                break
            self._release(room)
        while self._keep and self._keep[0][0] <= now and not over:
            self._release(heapq.heappop(self._keep)[1])

    def _release(self, room: int) -> None:
        if room in self._held:
            self._held.discard(room)
            self._intend("release", [room])
            self._client.prefill.release(room)


class DecodeEngine:
    """A decode: wants its rooms, holds each for a while, fetches it and is done."""

    def __init__(self, engine: Engine, record: Recorder) -> None:
        self._engine, self._record = engine, record
        self._table = engine.timetable
        self._random = random.Random(f"{engine.timetable.seed}/{engine.name}")
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._client = etcd_pd.connect(engine.socket_path, heartbeat=engine.heartbeat)
        self._waiting: dict[int, str] = {}  # how the request names the instance, by room
        self._holding: list[tuple[float, int]] = []  # when a room is fetched, or wanted once more
        self._lost: dict[int, str] = {}  # of those that are to be wanted once more
        self._asked_again: set[int] = set()
        self._seen = (-1, "")
        self._seen_at = 0.0

    def run(self) -> None:
        """Until the timetable is over and every wait has ended."""
        turns = Turns(self._engine)
        with self._client, self._udp:
            while not turns.ended and not (turns.over and not self._waiting and not self._lost):
                now = time.monotonic()
                for number in turns.due(now):
                    if number % self._table.decodes == self._engine.index:
                        self._want_due(number)
                for event in self._client.decode.poll():
                    self._hear(event, now)
                self._look(now)
                while self._holding and self._holding[0][0] <= now:
                    self._fetch(heapq.heappop(self._holding)[1])
                self._record.flush()
                turns.sleep(self._client)

    def _say(self, what: str, room: int, **data: object) -> None:
        self._record(what, instance=INSTANCE, room=room, **data)

    def _want_due(self, number: int) -> None:
        name = f"{INSTANCE}.example:8998" if number % 3 else INSTANCE
        owners = self._table.owners(number)
        named = owners[0] if number % NAMED == 0 and len(owners) == 1 else None
        self._want(self._table.room(number), name, self._table.timeout, named)

    def _want(self, room: int, name: str, timeout: float, dp_rank: int | None = None) -> None:
        self._say("want", room, timeout=timeout)
        self._waiting[room] = name
        self._client.decode.want(name, room, timeout=timeout, dp_rank=dp_rank)

    def _hear(self, event: etcd_pd.DecodeEvent, now: float) -> None:
        if isinstance(event, etcd_pd.Resolved):
            found = event.assignment
            self._answered("resolved", found)
            seconds = self._random.uniform(2.0, 8.0) if found.room % LONG == 0 else self._random.uniform(0.0, 0.5)
            heapq.heappush(self._holding, (now + seconds, found.room))
        elif isinstance(event, etcd_pd.Ended):
            self._end(event.error, now)

    def _answered(self, what: str, found: etcd_pd.Assignment) -> None:
        stale = found.stale or self._client.decode.view != "synced"
        self._say(what, found.room, dp_rank=found.dp_rank, epoch=found.epoch, revision=found.revision, stale=stale)

    def _end(self, error: etcd_pd.ResolveError, now: float) -> None:
        name = self._waiting.pop(error.room, None)
        if name is None:
            return
        more = {"dp_rank": error.dp_rank, "epoch": error.epoch} if isinstance(error, etcd_pd.PrefillLost) else {}
        self._say("ended", error.room, error=type(error).__name__, **more)
        self._finish(error.room, name)
        if more and error.room not in self._asked_again:  # it must stay lost
            self._lost[error.room] = name
            self._asked_again.add(error.room)
            heapq.heappush(self._holding, (now + self._random.uniform(0.05, 1.5), error.room))

    def _fetch(self, room: int) -> None:
        if room not in self._waiting:
            if room in self._lost:
                self._want(room, self._lost.pop(room), 2.0)
            return
        name = self._waiting[room]
        try:
            found = self._client.decode.resolve_nowait(name, room)
        except (etcd_pd.ViewStale, etcd_pd.AgentUnavailable):
            return  # it is wanted once more, and nobody can tell yet
        except etcd_pd.ResolveError as exc:
            self._end(exc, time.monotonic())
            return
        if found is None:
            return
        self._answered("known", found)
        instance = self._client.decode.instance(name)
        for endpoint in instance.endpoints(found.dp_rank) if instance else ():
            self._udp.sendto(str(room).encode(), (endpoint.ip, endpoint.port))
        self._waiting.pop(room)
        self._finish(room, name)

    def _finish(self, room: int, name: str) -> None:
        self._say("done", room)
        self._client.decode.done(name, room)

    def _look(self, now: float) -> None:
        """Record the view: whenever it changes its state or goes back, else now and then."""
        revision, view = seen = self._client.decode.revision, self._client.decode.view
        if seen == self._seen:
            return
        if view != self._seen[1] or revision < self._seen[0] or now - self._seen_at > 0.1:
            self._record("view", revision=revision, view=view)
            self._seen, self._seen_at = seen, now


def main() -> None:
    """Run one engine."""
    engine = Engine.from_json(sys.argv[1])
    path = Path(engine.directory) / f"{engine.name}.jsonl" if engine.recorded else Path(os.devnull)
    with Recorder(path, engine.name) as record:
        (PrefillEngine if engine.role == "prefill" else DecodeEngine)(engine, record).run()


if __name__ == "__main__":
    main()
