"""Announces an engine's ranks on its behalf: one connection to the agent each, gone when the engine is."""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass

from ...client import aio
from ...config import bracketed
from ...errors import AnnounceError, EtcdPDError
from ...wire.values import PrefillInstance, Rank
from ..route import Row, contradiction
from .settings import GatewaySettings

log = logging.getLogger(__name__)

#: SGLang gives up a PUT or POST after 5 s; the answer must be there before.
ANSWER_SECONDS = 4.5
#: How long a rank's socket may take to accept a connection before the rank is taken for dead.
PROBE_SECONDS = 1.0
#: Marks, in InstanceInfo.extra, the instances that a gateway announced and may announce again.
MARK = {"announced_by": "gateway"}


class RankHeld(EtcdPDError):
    """The rank belongs to another process, which lives."""


class Contradiction(EtcdPDError):
    """A rank's registration contradicts what its living siblings registered.

    Attributes:
        field: in which field.
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} contradicts what other ranks registered")
        self.field = field


class NotInEtcdYet(EtcdPDError):
    """The registry did not take the rank in time; it is tried on."""


@dataclass
class _Announced:
    """One rank process of the engine; ``client`` is None while the engine is taken for dead."""

    row: Row
    client: aio.AsyncClient | None = None
    announcing: asyncio.Task[object] | None = None


class Ranks:
    """The ranks of the one engine that this gateway stands beside.

    Args:
        settings: the gateway's.
        reader: a client that follows the instance.
    """

    def __init__(self, settings: GatewaySettings, reader: aio.AsyncClient) -> None:
        self._settings, self._reader = settings, reader
        self._ranks: dict[Rank, _Announced] = {}
        self._launch_id = ""
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def http_port(self) -> int | None:
        """Port of the engine's own HTTP server, as its ranks registered it."""
        return next((ranked.row.extra["prefill_http_port"] for ranked in self._ranks.values()), None)

    def instance(self) -> PrefillInstance | None:
        """The instance as the registry has it."""
        return self._reader.sync.decode.instance(self._settings.instance)

    def prefill(self, dp_rank: int) -> aio.AsyncPrefill | None:
        """Who registers rooms for a DP rank; None where this gateway announced no such rank."""
        for rank, ranked in self._ranks.items():
            if rank.dp == dp_rank and ranked.client:
                return ranked.client.prefill
        return None

    async def put(self, row: Row) -> None:
        """Announce a rank; returns when the registry has it. The same again is no error.

        Raises:
            RankHeld: the rank belongs to another process, which lives.
            Contradiction: its siblings live and said something else of the instance.
            AnnounceError: another start of the instance lives.
            NotInEtcdYet: not in time; it is tried on.
        """
        async with self._lock:
            if not self._visible(row):
                await self._make_way(row)
                await self._announce(row)
        await self._until_visible(row)

    async def recover(self) -> None:
        """After a restart: take over what an earlier gateway announced for this instance, from the registry alone.

        Registrations that come meanwhile wait for it.
        """
        async with self._lock:
            instance = await self._reader.decode.follow(self._settings.instance)
            if instance is None or not MARK.items() <= instance.info.extra.items():
                return
            self._launch_id = instance.info.launch_id
            extra = {name: value for name, value in instance.info.extra.items() if name not in MARK}
            for endpoint in instance.ranks:
                row = Row(endpoint.rank, instance.info.topology, endpoint.ip, endpoint.port, extra)
                await self._announce(row)
            log.info("recovered instance=%s ranks=%d", instance.id, len(instance.ranks))

    async def withdraw(self) -> None:
        """The engine is dead: take its ranks out of etcd, but remember them in case that it was not."""
        async with self._lock:
            for ranked in self._ranks.values():
                await self._close(ranked)

    async def rejoin(self) -> None:
        """The engine answers again, and did not restart: its ranks are the same."""
        async with self._lock:
            for ranked in list(self._ranks.values()):
                await self._announce(ranked.row)

    async def leave(self) -> None:
        """This gateway ends: leave the ranks of a living engine to a successor, for as long as they linger."""
        stays = await self.alive()
        for ranked in self._ranks.values():
            if ranked.client and stays:
                ranked.client.sync.detach()
            await self._close(ranked)

    async def alive(self) -> bool:
        """Whether any rank's socket accepts connections."""
        ends = [(ranked.row.ip, ranked.row.port) for ranked in self._ranks.values()]
        return any(await asyncio.gather(*(accepts(ip, port) for ip, port in ends)))

    # --- parts of put()

    async def _make_way(self, row: Row) -> None:
        """End what a restarted engine left here, provided that it is dead.

        Raises:
            RankHeld, Contradiction: it is not.
        """
        known = self._ranks.get(row.rank)
        if known and (known.row.ip, known.row.port) != (row.ip, row.port):
            if await accepts(known.row.ip, known.row.port):
                at = f"{bracketed(known.row.ip)}:{known.row.port}"
                raise RankHeld(f"rank {row.rank} is served by a living process at {at}")
            await self._drop_dead()
        contradicted = self._contradicted(row)
        if contradicted:
            await self._drop_dead()
            contradicted = self._contradicted(row)
        if contradicted:
            raise Contradiction(contradicted)

    def _contradicted(self, row: Row) -> str | None:
        return next((contradiction(row, ranked.row) for ranked in self._ranks.values()), None)

    async def _drop_dead(self) -> None:
        """Forget the ranks whose sockets accept no connection: their engine restarted."""
        ranks = list(self._ranks.items())
        living = await asyncio.gather(*(accepts(ranked.row.ip, ranked.row.port) for _, ranked in ranks))
        for (rank, ranked), lives in zip(ranks, living, strict=True):
            if not lives:
                log.info("restarted instance=%s rank=%s", self._settings.instance, rank)
                del self._ranks[rank]
                await self._close(ranked)
        if not self._ranks:
            self._launch_id = ""

    async def _announce(self, row: Row) -> None:
        ranked = self._ranks.get(row.rank)
        if ranked and ranked.client:
            return
        self._launch_id = self._launch_id or str(uuid.uuid4())
        client = aio.connect(self._settings.socket_path)
        await client.__aenter__()
        announcing = asyncio.create_task(
            client.prefill.announce(
                self._settings.instance,
                rank=row.rank,
                topology=row.topology,
                launch_id=self._launch_id,
                addresses=self._settings.all_addresses,
                ip=row.ip,
                port=row.port,
                policy=row.policy,
                extra={**row.extra, **MARK},
                linger=self._settings.linger_seconds,
            )
        )
        self._ranks[row.rank] = _Announced(row, client, announcing)

    def _visible(self, row: Row) -> bool:
        instance = self.instance()
        return instance is not None and any(
            (endpoint.rank, endpoint.ip, endpoint.port) == (row.rank, row.ip, row.port) for endpoint in instance.ranks
        )

    async def _until_visible(self, row: Row) -> None:
        # not until Announced: that comes when all siblings of the DP rank are there, and they register one by one
        ranked = self._ranks.get(row.rank)
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._see(row))]
        if ranked and ranked.announcing:
            waits.append(asyncio.ensure_future(_failure(ranked.announcing)))
        try:
            done, _ = await asyncio.wait(waits, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise NotInEtcdYet(f"rank {row.rank} is not in etcd yet; it is tried on")
            done.pop().result()
        except AnnounceError:
            self._ranks.pop(row.rank, None)
            if ranked:
                await self._close(ranked)
            raise
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _see(self, row: Row) -> None:
        while not self._visible(row):
            await self._reader.decode.changed(self._settings.instance)

    async def _close(self, ranked: _Announced) -> None:
        client, ranked.client = ranked.client, None
        announcing, ranked.announcing = ranked.announcing, None
        if client:
            await client.close()
        if announcing:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)


async def _failure(announcing: asyncio.Task[object]) -> None:
    """Raises what an announcement failed with; one that succeeds says nothing new, since the rank is seen before."""
    await asyncio.wait([announcing])
    announcing.result()
    await asyncio.get_running_loop().create_future()


async def accepts(ip: str, port: int) -> bool:
    """Whether a process accepts TCP connections there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(ip, port), PROBE_SECONDS)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True
