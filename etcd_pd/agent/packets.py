"""From engines: each packet becomes a call of the book, the announcer, or what engines want."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import astuple

from ..config import AgentSettings
from ..core.batch import Durable, Outcome, Rejected
from ..core.book import RoomBook
from ..core.claims import LocalRank
from ..core.keys import Keys
from ..core.records import Header
from ..errors import ConfigError, EtcdPDError, ProtocolError, RankDraining
from ..wire import messages, to_agent, to_client
from .announcer import Announcer
from .connection import EngineConnection, Speaker
from .histories import Histories
from .looks import Looks
from .pushes import Pushes
from .ranks import Ranks
from .registrar import Registrar
from .stats import Stats
from .wants import Wants

log = logging.getLogger(__name__)

#: How often to look whether a node that drains has rooms left, seconds.
NODE_DRAIN_LOOK_SECONDS = 0.1


class Packets:
    """Handles packets of engines, and their end.

    Args:
        settings: of the agent.
        book: the rooms of local ranks.
        announcer: keeps ranks in etcd.
        registrar: writes rooms.
        synced: set once etcd was seen whole.
        ranks: the local ones.
        wants: what engines wait for.
        pushes: what is sent to engines.
        connections: every engine.
        histories: compares what engines have seen of etcd with what it is.
        looks: shows what the agent knows.
        stats: what is counted.
    """

    def __init__(
        self,
        settings: AgentSettings,
        book: RoomBook,
        announcer: Announcer,
        registrar: Registrar,
        synced: asyncio.Event,
        ranks: Ranks,
        wants: Wants,
        pushes: Pushes,
        connections: Collection[EngineConnection],
        histories: Histories,
        looks: Looks,
        stats: Stats,
    ) -> None:
        self._settings, self._keys, self._book = settings, Keys(settings.root), book
        self._announcer, self._registrar, self._synced = announcer, registrar, synced
        self._ranks, self._wants, self._pushes, self._connections, self._stats = (
            ranks,
            wants,
            pushes,
            connections,
            stats,
        )
        self._histories = histories
        self._handlers: dict[int, Callable[[EngineConnection, bytes], None]] = {
            messages.HELLO[0]: self._hello,
            messages.ANNOUNCE[0]: self._announce,
            messages.DECODER[0]: self._decoder,
            messages.REGISTER[0]: self._register,
            messages.REGISTER_LOT[0]: self._register_lot,
            messages.RELEASE[0]: self._release,
            messages.ADOPT[0]: self._adopt,
            messages.FAIL[0]: self._fail,
            messages.DRAIN[0]: self._drain,
            messages.DRAIN_NODE[0]: self._drain_node,
            messages.LEAVE_NODE[0]: self._leave_node,
            messages.WANT[0]: wants.want,
            messages.DONE[0]: wants.end,
            messages.FOLLOW[0]: wants.follow,
            messages.BYE[0]: self._bye,
            messages.PING[0]: self._ping,
            messages.LOOK[0]: looks.begin,
            messages.LOOK_ON[0]: looks.go_on,
        }

    def packet(self, engine: EngineConnection, packet: bytes) -> None:
        """Handle one packet.

        Raises:
            ProtocolError, ConfigError: it is malformed, or breaks a rule; the connection is to be closed.
        """
        handler = self._handlers.get(packet[0])
        if handler is None or len(packet) > messages.MAX_PACKET:
            raise ProtocolError(f"unknown or oversized packet {packet[:1]!r}")
        if not engine.greeted and packet[0] != messages.HELLO[0]:
            raise ProtocolError("the first packet must be HELLO")
        try:
            handler(engine, packet)
        except (ProtocolError, ConfigError):
            raise
        except Exception:  # a bug of ours: it costs this request, not the engine
            self._stats.internal_errors += 1
            log.exception("internal error, please report it: a %r packet of %r was not handled", packet[:1], engine)

    def closed(self, engine: EngineConnection, reason: str) -> None:
        """An engine is gone."""
        if reason.startswith("it broke"):
            self._stats.protocol_errors += 1
            log.warning("engine %r closed: %s", engine, reason)
        else:
            log.log(
                logging.INFO if engine.rank or engine.decoder else logging.DEBUG, "engine %r left: %s", engine, reason
            )
        self._wants.leave(engine)
        self._ranks.leave(engine)
        if engine.decoder:
            self._announcer.drop(self._keys.decode(engine.decoder), left=engine.leaving)

    def _hello(self, engine: EngineConnection, packet: bytes) -> None:
        hello = to_agent.Hello.decode(packet)
        if hello.protocol != messages.VERSION:
            refusal = _other_version(hello.protocol)
            engine.send(to_client.Welcome(refused=refusal).encode())
            raise ProtocolError(refusal)
        engine.greeted = True
        if hello.process:
            self._replace_connection(engine, hello.process)
        if hello.revision:
            engine.seen = Header(hello.cluster_id, hello.revision)
            self._histories.check(engine, engine.seen)
        if hello.heartbeat is not None:
            engine.expect_heartbeat(hello.heartbeat)
        engine.send(to_client.Welcome(self._settings.agent_id, self._synced.is_set()).encode())
        self._ping(engine, packet)

    def _replace_connection(self, engine: EngineConnection, process: str) -> None:
        """A process has connected anew, perhaps before its last connection's end is noticed."""
        for other in [one for one in self._connections if one is not engine and one.speaker.process == process]:
            other.close("its process has connected anew")
        engine.speaker, engine.leaving = Speaker(process), process in self._ranks.drained

    def _announce(self, engine: EngineConnection, packet: bytes) -> None:
        self._ranks.announce(engine, LocalRank.announced(to_agent.Announce.decode(packet), engine.seen))

    def _decoder(self, engine: EngineConnection, packet: bytes) -> None:
        decoder = to_agent.Decoder.decode(packet)
        engine.decoder = decoder.instance
        value = json.dumps({"address": decoder.address, "agent": self._settings.agent_id}).encode()
        self._announcer.keep(self._keys.decode(engine.decoder), value)

    def _register(self, engine: EngineConnection, packet: bytes) -> None:
        now = time.monotonic()
        outcomes: list[Outcome] = []
        for room, sequence in messages.decode_rooms(packet):
            engine.said = max(engine.said, sequence)
            if engine.rank and self._admits(engine, engine.rank, room, sequence):
                outcomes.extend(self._book.register(engine.speaker, engine.rank.ref, room, sequence, now))
            else:
                outcomes.append(_refused(engine, room, sequence))
        if outcomes:
            self._pushes.deliver(outcomes)
        self._registrar.kick()

    def _register_lot(self, engine: EngineConnection, packet: bytes) -> None:
        rooms = messages.decode_rooms(packet)
        if not 0 < len(rooms) <= messages.MAX_LOT:
            raise ProtocolError(f"a lot of {len(rooms)} rooms")
        engine.said = max(engine.said, *(sequence for _, sequence in rooms))
        admitted = [said for said in rooms if engine.rank and self._admits(engine, engine.rank, *said)]
        outcomes: list[Outcome] = [_refused(engine, *said) for said in rooms if said not in admitted]
        if engine.rank and admitted:
            outcomes += self._book.register_lot(engine.speaker, engine.rank.ref, admitted, time.monotonic())
        if outcomes:
            self._pushes.deliver(outcomes)
        self._registrar.kick()

    def _admits(self, engine: EngineConnection, rank: LocalRank, room: int, sequence: int) -> bool:
        """Whether a rank takes a room; one that drains answers as before what it is asked again."""
        return not rank.draining or self._book.knows(engine.speaker, rank.ref, room, sequence)

    def _release(self, engine: EngineConnection, packet: bytes) -> None:
        outcomes: list[Outcome] = []
        for room, sequence in messages.decode_rooms(packet):
            if not _is_new(engine, sequence):
                outcomes.append(Durable(engine.speaker, 0))  # only to say once more how far all is durable
                continue
            engine.undurable[sequence] = None
            if engine.rank:
                outcomes.extend(self._book.release(engine.speaker, engine.rank.ref, room, sequence))
            else:
                outcomes.append(Durable(engine.speaker, sequence))
        if outcomes:
            self._pushes.deliver(outcomes)
        self._registrar.kick()

    def _adopt(self, engine: EngineConnection, packet: bytes) -> None:
        for room, epoch, token, lease_id in messages.decode_adopted(packet):
            if engine.rank and epoch == engine.rank.known_epoch:
                self._book.adopt(engine.speaker, engine.rank.ref, epoch, room, token, lease_id, time.monotonic())

    def _fail(self, engine: EngineConnection, packet: bytes) -> None:
        room, reason, sequence = astuple(to_agent.Fail.decode(packet))
        if not _is_new(engine, sequence):
            self._pushes.deliver([Durable(engine.speaker, 0)])
            return
        engine.undurable[sequence] = None
        if engine.rank:
            now = time.monotonic()
            self._pushes.incidents.note("RoomFailed", room, *engine.rank.ref, reason)
            self._pushes.deliver(self._book.fail(engine.speaker, engine.rank.ref, room, reason, sequence, now))
        else:
            self._pushes.deliver([Durable(engine.speaker, sequence)])
        self._registrar.kick()

    def _drain(self, engine: EngineConnection, packet: bytes) -> None:
        self._ranks.drain(engine)

    def _drain_node(self, engine: EngineConnection, packet: bytes) -> None:
        """Whoever ends this node asks: let no new room in, and say when the last one has ended."""
        log.info("draining the node engines=%d", len(self._connections) - 1)
        self._ranks.drain_node()
        self._send_node_drained(engine)

    def _send_node_drained(self, engine: EngineConnection) -> None:
        ranks = [*self._ranks.lingering, *(other.rank for other in self._connections if other.rank)]
        if any(self._book.count(rank.ref) for rank in ranks) or any(other.wants for other in self._connections):
            asyncio.get_running_loop().call_later(NODE_DRAIN_LOOK_SECONDS, self._send_node_drained, engine)
        else:
            engine.send(messages.DRAINED)

    def _leave_node(self, engine: EngineConnection, packet: bytes) -> None:
        """Whoever ends this node has asked its engines to end: how they do it is no death."""
        for other in self._connections:
            other.leaving = True
            if other.rank:
                other.rank.leaving = True
        self._pushes.send_view(engine)  # so that who asks knows that it was heard

    def _bye(self, engine: EngineConnection, packet: bytes) -> None:
        engine.leaving = True
        if engine.rank:
            engine.rank.linger, engine.rank.leaving = 0.0, True

    def _ping(self, engine: EngineConnection, packet: bytes) -> None:
        self._pushes.flush()
        engine.round = messages.decode_ping(packet) or engine.round
        self._pushes.send_view(engine)


def _other_version(theirs: object) -> str:
    ours = f"the agent speaks protocol {messages.VERSION}, the client {theirs!r}: "
    if isinstance(theirs, int) and theirs > messages.VERSION:
        return ours + "upgrade the agent (its image, or etcd-pd where it runs)"
    return ours + "upgrade the package etcd-pd in the engine's image"


def _is_new(engine: EngineConnection, sequence: int) -> bool:
    """Whether the engine says this for the first time; it repeats what may have been lost on the way to it."""
    is_new = sequence > engine.said
    engine.said = max(engine.said, sequence)
    return is_new


def _refused(engine: EngineConnection, room: int, sequence: int) -> Rejected:
    if engine.rank is None:
        return Rejected(engine.speaker, room, EtcdPDError("the rank is not announced"), sequence)
    return Rejected(engine.speaker, room, RankDraining(room, "the rank is draining"), sequence)
