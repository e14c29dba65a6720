"""The store on etcd.

etcd3 gives channels and unary stubs; its watcher and its lease refresh lose what they got on the first
disconnect, so the two streams are our own, on its channel.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import tenacity

from ..config import EtcdSettings
from ..core.keys import prefix_end
from ..core.records import (
    Condition,
    Header,
    KeyValue,
    LeaseGrant,
    Listing,
    MemberStatus,
    Operation,
    TxnResult,
)
from ..errors import LeaseNotFound, StoreError, StoreRejected, StoreTimeout, StoreUnavailable
from . import etcdrpc as rpc
from .channels import Channels
from .convert import read_header, read_key_value, read_watch_response, to_compare, to_operation
from .refusals import TokenExpired, translate
from .stream import EtcdWatch, Stream, result_of

#: Keys a page: etcd counts the whole rest of the range for every page, so small pages cost the square of their number.
PAGE_KEYS = 100_000
#: A page that large takes seconds on a busy server.
LIST_TIMEOUT_SECONDS = 30.0
#: A member that has lost its leader refuses calls and ends streams. Without it, such a member goes on answering
#: progress requests, and a watch that learns nothing more looks alive.
REQUIRE_LEADER = (("hasleader", "true"),)

#: A status lists alarms among its errors, in protobuf's text format: ``memberID:1 alarm:NOSPACE``.
_ALARM = re.compile(r"\balarm:\s*(\w+)")


class EtcdStore:
    """A :class:`~etcd_pd.store.base.Store` on an etcd cluster. Use it as an async context manager, on one loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._channels = Channels(settings)
        self._token = ""
        self._keepalive: Stream | None = None

    async def __aenter__(self) -> EtcdStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._channels.endpoint

    async def close(self) -> None:
        """Close all channels and end all streams."""
        self._drop_keepalive()
        self._channels.close()

    # --- keys

    async def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        """Do all operations if all compares hold, else nothing. Never repeated: a timeout leaves it unknown."""
        request = rpc.TxnRequest(
            compare=[to_compare(compare) for compare in compares],
            success=[to_operation(operation) for operation in operations],
        )
        response = await self._call("txn", "KV", "Txn", request)
        return TxnResult(response.succeeded, read_header(response.header))

    async def read(self, keys: Sequence[bytes]) -> Listing:
        """Those of the keys that exist, at one revision."""
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key)) for key in keys])
        response = await self._repeat("read", "KV", "Txn", request)
        kvs = [read_key_value(kv) for answer in response.responses for kv in answer.response_range.kvs]
        return Listing(read_header(response.header), kvs)

    async def list(self, prefix: bytes, end: bytes = b"") -> Listing:
        """All keys under a prefix, where ``end`` is given only those before it, at one revision."""
        # one key first: turns from a frozen or cut-off endpoint long before a page's own timeout would
        await self._repeat("list", "KV", "Range", rpc.RangeRequest(key=prefix))
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
        return await self._repeat("list", "KV", "Range", request, LIST_TIMEOUT_SECONDS)

    # --- leases

    async def grant(self, ttl: int) -> LeaseGrant:
        """A new lease of at least ``ttl`` seconds. Repeated where unanswered: an orphan expires by itself."""
        response = await self._repeat("grant", "Lease", "LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl))
        if response.error:
            raise StoreRejected("grant", response.error)
        return LeaseGrant(response.ID, response.TTL)

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease on the one open stream; its TTL in seconds, 0 where it is gone."""
        stream = self._keepalive
        if stream is None or stream.endpoint != self._channels.current:
            self._drop_keepalive()
            stream = self._keepalive = await self._open("keepalive", "Lease", "LeaseKeepAlive")
        stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
        try:
            while True:
                response = await asyncio.wait_for(stream.receive(), self._settings.request_timeout_seconds)
                if lease_id == response.ID:
                    return int(response.TTL)
        except asyncio.TimeoutError as exc:
            self._drop_keepalive()
            self._channels.turn_from(stream.endpoint)
            raise StoreTimeout("keepalive", f"no answer in {self._settings.request_timeout_seconds} s") from exc
        except (StoreError, asyncio.CancelledError):
            self._drop_keepalive()
            raise

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; one that is gone already is no error."""
        try:
            await self._repeat("revoke", "Lease", "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease_id))
        except LeaseNotFound:
            pass

    async def time_to_live(self, lease_id: int) -> int:
        """Whole seconds left, 0 in the last one and where the lease is gone."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id)
        response = await self._repeat("timetolive", "Lease", "LeaseTimeToLive", request)
        return max(int(response.TTL), 0)

    # --- health

    async def auth_enabled(self) -> bool:
        """Whether users and roles hold.

        Raises:
            StoreRejected: they do, and this is not root.
        """
        return bool((await self._repeat("auth status", "Auth", "AuthStatus", rpc.AuthStatusRequest())).enabled)

    async def status(self) -> MemberStatus:
        """What the member at the endpoint in use says of itself; asked once, of no other."""
        found = await self._call("status", "Maintenance", "Status", rpc.StatusRequest())
        return MemberStatus(
            id=found.header.member_id,
            version=found.version,
            leader=found.leader,
            revision=found.header.revision,
            raft_term=found.raftTerm,
            db_size=found.dbSize,
            db_size_in_use=found.dbSizeInUse,
            is_learner=found.isLearner,
            alarms=tuple(_ALARM.findall(" ".join(found.errors))),
        )

    async def alarms(self) -> Sequence[tuple[int, str]]:
        """Alarms that are raised, as member id and name: ``NOSPACE``, ``CORRUPT``. It costs an entry in etcd's log."""
        found = await self._repeat("alarm", "Maintenance", "Alarm", rpc.AlarmRequest())
        return [(alarm.memberID, rpc.AlarmType.Name(alarm.alarm)) for alarm in found.alarms]

    # --- watch

    async def watch(self, prefix: bytes, start_revision: int, end: bytes = b"") -> EtcdWatch:
        """Open a watch over a prefix, where ``end`` is given only over the keys before it, from a revision on."""
        stream = await self._open("watch", "Watch", "Watch", read_watch_response)
        create = rpc.WatchCreateRequest(
            key=prefix, range_end=end or prefix_end(prefix), start_revision=start_revision, fragment=True
        )
        stream.send(rpc.WatchRequest(create_request=create))
        return EtcdWatch(stream)

    # --- calls

    async def _repeat(self, op: str, service: str, method: str, request: Any, timeout: float | None = None) -> Any:
        """A call that may be repeated: at every endpoint, with growing and jittered pauses."""
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            stop=tenacity.stop_after_attempt(len(self._settings.endpoints) + 1),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        ):
            with attempt:
                return await self._call(op, service, method, request, timeout)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _call(self, op: str, service: str, method: str, request: Any, timeout: float | None = None) -> Any:
        endpoint = self._channels.current
        try:
            return await self._once(op, service, method, request, timeout)
        except TokenExpired:  # etcd did nothing: safe to say again, even a Txn
            self._token = ""
            try:
                return await self._once(op, service, method, request, timeout)
            except TokenExpired as exc:
                raise StoreRejected(op, str(exc)) from exc
        except StoreUnavailable:
            self._channels.turn_from(endpoint)
            raise

    async def _once(self, op: str, service: str, method: str, request: Any, timeout: float | None) -> Any:
        metadata = await self._metadata()
        call = getattr(self._channels.stub(service), method)
        future = call.future(request, timeout=timeout or self._settings.request_timeout_seconds, metadata=metadata)
        try:
            return await result_of(future)
        except grpc.RpcError as exc:
            raise translate(op, exc, self._channels.endpoint) from exc

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        if not self._settings.username:
            return REQUIRE_LEADER
        if not self._token:
            request = rpc.AuthenticateRequest(name=self._settings.username, password=self._settings.password)
            future = self._channels.stub("Auth").Authenticate.future(
                request, timeout=self._settings.request_timeout_seconds
            )
            try:
                self._token = (await result_of(future)).token
            except grpc.RpcError as exc:
                raise translate("authenticate", exc, self._channels.endpoint) from exc
        return (*REQUIRE_LEADER, ("token", self._token))

    async def _open(self, op: str, service: str, method: str, convert: Callable[[Any], Any] | None = None) -> Stream:
        metadata = await self._metadata()
        call = getattr(self._channels.stub(service), method)
        return Stream(op, call, metadata, self._channels.current, self._channels.endpoint, convert, self._stream_ended)

    def _stream_ended(self, endpoint: int, error: StoreError) -> None:
        if isinstance(error, TokenExpired):
            self._token = ""
        elif isinstance(error, StoreUnavailable):
            self._channels.turn_from(endpoint)

    def _drop_keepalive(self) -> None:
        stream, self._keepalive = self._keepalive, None
        if stream:
            stream.close()
