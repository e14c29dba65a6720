"""The store on etcd, by grpc's asyncio API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ..config import EtcdSettings
from ..core.keys import prefix_end
from ..core.records import (
    Condition,
    Header,
    KeyValue,
    LeaseGrant,
    LeaseTimes,
    Listing,
    MemberStatus,
    Operation,
    TxnResult,
)
from ..errors import LeaseNotFound, StoreRejected
from . import etcdrpc as rpc
from .base import StoreCounts
from .calls import Calls
from .convert import read_header, read_key_value, read_status, read_watch_response, to_txn
from .keepalive import KeepAlive
from .members import Members
from .names import Names
from .stream import EtcdWatch

#: Keys a page: etcd counts the whole rest of the range for every page, so small pages cost the square of their number.
PAGE_KEYS = 100_000
#: A page that large takes seconds on a busy server.
LIST_TIMEOUT_SECONDS = 30.0


class EtcdStore:
    """A :class:`~etcd_pd.store.base.Store` on an etcd cluster. Use it as an async context manager, on one loop.

    Args:
        settings: how to reach it.
        names: where the endpoints' hosts are; by default, the system's resolver says so.
    """

    def __init__(self, settings: EtcdSettings, names: Names | None = None) -> None:
        self._settings = settings
        self._calls = Calls(settings, names)
        self._members = Members(settings, self._calls)
        self._keepalive = KeepAlive(self._calls, settings.request_timeout_seconds)

    async def __aenter__(self) -> EtcdStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._calls.connections.endpoint

    @property
    def counts(self) -> StoreCounts:
        """What happened so far."""
        return self._calls.counts

    async def close(self) -> None:
        """Close all channels and end all streams."""
        await self._keepalive.close()
        await self._calls.close()

    # --- keys

    async def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        """Do all operations if all compares hold, else nothing. Never repeated: a timeout leaves it unknown."""
        response = await self._calls.call("txn", "KV", "Txn", to_txn(compares, operations))
        return TxnResult(response.succeeded, read_header(response.header))

    async def read(self, keys: Sequence[bytes]) -> Listing:
        """Those of the keys that exist, at one revision."""
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key)) for key in keys])
        response = await self._calls.repeat("read", "KV", "Txn", request)
        kvs = [read_key_value(kv) for answer in response.responses for kv in answer.response_range.kvs]
        return Listing(read_header(response.header), kvs)

    async def list(self, prefix: bytes, end: bytes = b"") -> Listing:
        """All keys under a prefix, where ``end`` is given only those before it, at one revision."""
        # one key first: turns from a frozen or cut-off endpoint long before a page's own timeout would
        await self._calls.repeat("list", "KV", "Range", rpc.RangeRequest(key=prefix))
        kvs: list[KeyValue] = []
        header: Header | None = None
        end = end or prefix_end(prefix)
        page = asyncio.create_task(self._page(prefix, end, 0))
        try:
            while True:
                response = await page
                header = header or read_header(response.header)
                if response.more:  # etcd makes the next page while this one is read
                    start = response.kvs[-1].key + b"\0"
                    page = asyncio.create_task(self._page(start, end, header.revision))
                    await asyncio.sleep(0)
                kvs.extend(map(read_key_value, response.kvs))
                if not response.more:
                    return Listing(header, kvs)
        finally:
            page.cancel()

    async def _page(self, start: bytes, end: bytes, revision: int) -> Any:
        request = rpc.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS, revision=revision)
        return await self._calls.repeat("list", "KV", "Range", request, LIST_TIMEOUT_SECONDS)

    # --- leases

    async def grant(self, ttl: int) -> LeaseGrant:
        """A new lease of at least ``ttl`` seconds. Repeated where unanswered: an orphan expires by itself."""
        response = await self._calls.repeat("grant", "Lease", "LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl))
        if response.error:
            raise StoreRejected("grant", response.error)
        return LeaseGrant(response.ID, response.TTL)

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease on the one open stream; its TTL in seconds, 0 where it is gone."""
        return await self._keepalive.renew(lease_id)

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; one that is gone already is no error."""
        try:
            await self._calls.repeat("revoke", "Lease", "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease_id))
        except LeaseNotFound:
            pass

    async def lease_times(self, lease_id: int) -> LeaseTimes:
        """What a lease was granted, and what it has left."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id)
        found = await self._calls.repeat("timetolive", "Lease", "LeaseTimeToLive", request)
        return LeaseTimes(max(int(found.TTL), 0), int(found.grantedTTL))

    # --- health

    async def auth_enabled(self) -> bool:
        """Whether users and roles hold.

        Raises:
            StoreRejected: they do, and this is not root.
        """
        return bool((await self._calls.repeat("auth status", "Auth", "AuthStatus", rpc.AuthStatusRequest())).enabled)

    async def status(self) -> MemberStatus:
        """What the member at the endpoint in use says of itself; asked once, of no other."""
        return read_status(await self._calls.call("status", "Maintenance", "Status", rpc.StatusRequest()))

    async def settle(self, prefix: bytes, key: bytes) -> None:
        """Go to the member that is this key's among all keys under the prefix, where it answers."""
        if self._settings.spread:
            await self._members.settle(prefix, key)

    async def alarms(self) -> Sequence[tuple[int, str]]:
        """Alarms that are raised, as member id and name: ``NOSPACE``, ``CORRUPT``. It costs an entry in etcd's log."""
        found = await self._calls.repeat("alarm", "Maintenance", "Alarm", rpc.AlarmRequest())
        return [(alarm.memberID, rpc.AlarmType.Name(alarm.alarm)) for alarm in found.alarms]

    # --- watch

    async def watch(self, prefix: bytes, start_revision: int, end: bytes = b"") -> EtcdWatch:
        """Open a watch over a prefix, where ``end`` is given only over the keys before it, from a revision on."""
        stream = await self._calls.open("watch", "Watch", "Watch", read_watch_response)
        create = rpc.WatchCreateRequest(
            key=prefix, range_end=end or prefix_end(prefix), start_revision=start_revision, fragment=True
        )
        stream.send(rpc.WatchRequest(create_request=create))
        return EtcdWatch(stream)
