"""The store on etcd: the only file that imports etcd3 and grpc.

etcd3 gives channels and unary stubs; its watcher and its lease refresh lose what they got on the first
disconnect, so the two streams are our own, on its channel. One endpoint is used at a time, until a call or a stream
fails on it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import tenacity

from ..config import EtcdSettings
from ..core.keys import prefix_end
from ..core.records import (
    Condition,
    Delete,
    Event,
    Header,
    KeyValue,
    LeaseGrant,
    Listing,
    MemberStatus,
    OnLease,
    Operation,
    Put,
    TxnResult,
    WatchResponse,
)
from ..errors import Compacted, LeaseNotFound, StoreError, StoreRejected, StoreTimeout, StoreUnavailable
from . import etcdrpc

etcdrpc.install()

import etcd3  # noqa: E402  (its own stubs do not load on a current protobuf: ours must stand in their place first)
import grpc  # noqa: E402

rpc = etcdrpc

#: Keys a page: etcd counts the whole rest of the range for every page, so small pages cost the square of their number.
PAGE_KEYS = 100_000
#: A page that large takes seconds on a busy server.
LIST_TIMEOUT_SECONDS = 30.0
#: gRPC's own defaults wait up to two minutes before they look for a restarted server again.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses pings more frequent than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

#: A member that has lost its leader refuses calls and ends streams. Without it, such a member goes on answering
#: progress requests, and a watch that learns nothing more looks alive.
REQUIRE_LEADER = (("hasleader", "true"),)

#: A status lists alarms among its errors, in protobuf's text format: ``memberID:1 alarm:NOSPACE``.
_ALARM = re.compile(r"\balarm:\s*(\w+)")


class EtcdStore:
    """A :class:`~etcd_pd.store.base.Store` on an etcd cluster. Use it as an async context manager, on one loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._endpoint = 0
        self._clients: dict[int, Any] = {}
        self._stubs: dict[tuple[int, str], Any] = {}
        self._written_at: tuple[int, ...] = ()
        self._token = ""
        self._keepalive: _Stream | None = None

    async def __aenter__(self) -> EtcdStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._settings.endpoints[self._endpoint]

    def _turn_from(self, endpoint: int) -> None:
        """Turn to another endpoint, unless that was done already: many calls find the same one silent."""
        if endpoint == self._endpoint:
            self._endpoint = (self._endpoint + 1) % len(self._settings.endpoints)
            if self._written_at != _written_at(self._settings):
                # a channel keeps the certificates that it began with, and they were renewed since
                self._clients.clear()
                self._stubs.clear()

    async def close(self) -> None:
        """Close all channels and end all streams."""
        self._drop_keepalive()
        clients, self._clients = self._clients, {}
        self._stubs.clear()
        for client in clients.values():
            client.close()

    # --- keys

    async def txn(self, compares: Sequence[Condition], operations: Sequence[Operation]) -> TxnResult:
        """Do all operations if all compares hold, else nothing. Never repeated: a timeout leaves it unknown."""
        request = rpc.TxnRequest(
            compare=[_compare(compare) for compare in compares],
            success=[_operation(operation) for operation in operations],
        )
        response = await self._call("txn", "KV", "Txn", request)
        return TxnResult(response.succeeded, _header(response.header))

    async def read(self, keys: Sequence[bytes]) -> Listing:
        """Those of the keys that exist, at one revision."""
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key)) for key in keys])
        response = await self._repeat("read", "KV", "Txn", request)
        kvs = [_key_value(kv) for answer in response.responses for kv in answer.response_range.kvs]
        return Listing(_header(response.header), kvs)

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
                header = header or _header(response.header)
                if response.more:  # etcd makes the next page while this one is read
                    start = response.kvs[-1].key + b"\0"
                    page = asyncio.create_task(self._page(start, end, header.revision))
                    await asyncio.sleep(0)
                kvs.extend(map(_key_value, response.kvs))
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
        if stream is None or stream.endpoint != self._endpoint:
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
            self._turn_from(stream.endpoint)
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
        stream = await self._open("watch", "Watch", "Watch", _watch_response)
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
        endpoint = self._endpoint
        try:
            return await self._once(op, service, method, request, timeout)
        except _TokenExpired:  # etcd did nothing: safe to say again, even a Txn
            self._token = ""
            try:
                return await self._once(op, service, method, request, timeout)
            except _TokenExpired as exc:
                raise StoreRejected(op, str(exc)) from exc
        except StoreUnavailable:
            self._turn_from(endpoint)
            raise

    async def _once(self, op: str, service: str, method: str, request: Any, timeout: float | None) -> Any:
        metadata = await self._metadata()
        call = getattr(self._stub(service), method)
        future = call.future(request, timeout=timeout or self._settings.request_timeout_seconds, metadata=metadata)
        try:
            return await _result(future)
        except grpc.RpcError as exc:
            raise _translate(op, exc, self.endpoint) from exc

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        if not self._settings.username:
            return REQUIRE_LEADER
        if not self._token:
            request = rpc.AuthenticateRequest(name=self._settings.username, password=self._settings.password)
            future = self._stub("Auth").Authenticate.future(request, timeout=self._settings.request_timeout_seconds)
            try:
                self._token = (await _result(future)).token
            except grpc.RpcError as exc:
                raise _translate("authenticate", exc, self.endpoint) from exc
        return (*REQUIRE_LEADER, ("token", self._token))

    async def _open(self, op: str, service: str, method: str, convert: Callable[[Any], Any] | None = None) -> _Stream:
        metadata = await self._metadata()
        call = getattr(self._stub(service), method)
        return _Stream(op, call, metadata, self._endpoint, self.endpoint, convert, self._stream_ended)

    def _stream_ended(self, endpoint: int, error: StoreError) -> None:
        if isinstance(error, _TokenExpired):
            self._token = ""
        elif isinstance(error, StoreUnavailable):
            self._turn_from(endpoint)

    def _drop_keepalive(self) -> None:
        stream, self._keepalive = self._keepalive, None
        if stream:
            stream.close()

    def _stub(self, service: str) -> Any:
        key = (self._endpoint, service)
        if key not in self._stubs:
            if self._endpoint not in self._clients:
                self._clients[self._endpoint] = self._connect(self.endpoint)
            stub_class = getattr(etcdrpc, f"{service}Stub")
            self._stubs[key] = stub_class(self._clients[self._endpoint].channel)
        return self._stubs[key]

    def _connect(self, endpoint: str) -> Any:
        parts = urlsplit(endpoint)
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
        settings = self._settings
        if not self._clients:
            self._written_at = _written_at(settings)
        # user and password stay out of it: etcd3 asks for one token, in its constructor, and never renews it
        return etcd3.client(
            host=host,
            port=parts.port,
            ca_cert=(settings.ca_file or "/etc/ssl/certs/ca-certificates.crt") if settings.tls else None,
            cert_cert=settings.cert_file or None,
            cert_key=settings.key_file or None,
            grpc_options=CHANNEL_OPTIONS,
        )


def _written_at(settings: EtcdSettings) -> tuple[int, ...]:
    """When the files of the certificates were written; 0 for one that cannot be seen."""
    found = []
    for path in filter(None, (settings.ca_file, settings.cert_file, settings.key_file)):
        try:
            found.append(os.stat(path).st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


class EtcdWatch:
    """An open watch; iterate it. It ends with a StoreError, never quietly."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[WatchResponse]:
        while True:
            yield await self._stream.receive()

    def request_progress(self) -> None:
        """Ask etcd for a sign of life on this stream."""
        self._stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    async def close(self) -> None:
        """End the watch."""
        self._stream.close()


class _TokenExpired(StoreUnavailable):
    """etcd does not know the token (any more): it must be asked for again."""


class _Stream:
    """A bidirectional stream of grpc's synchronous API, readable from asyncio. A thread of its own reads it."""

    def __init__(
        self,
        op: str,
        call: Any,
        metadata: tuple[tuple[str, str], ...],
        endpoint: int,
        address: str,
        convert: Callable[[Any], Any] | None,
        on_ended: Callable[[int, StoreError], None],
    ) -> None:
        self.endpoint = endpoint
        self._op, self._address = op, address
        self._convert, self._on_ended = convert, on_ended
        self._loop = asyncio.get_running_loop()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._read_ahead: deque[Any] = deque()  # by the thread; the loop is woken once for all that it holds
        self._responses: asyncio.Queue[Any] = asyncio.Queue()
        self._call = call(iter(self._requests.get, None), metadata=metadata)
        self._thread = threading.Thread(target=self._read, name=f"etcd-{op}", daemon=True)
        self._thread.start()

    def send(self, request: Any) -> None:
        self._requests.put(request)

    async def receive(self) -> Any:
        response = await self._responses.get()
        if isinstance(response, StoreError):
            self._on_ended(self.endpoint, response)
            raise response
        return response

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._thread.join(timeout=1.0)

    def _read(self) -> None:
        error: StoreError = StoreUnavailable(self._op, f"{self._address} ended the stream")
        try:
            for response in self._call:
                self._hand_over(self._convert(response) if self._convert else response)
        except StoreError as exc:
            error = exc
        except grpc.RpcError as exc:
            error = _translate(self._op, exc, self._address)
        self._requests.put(None)  # grpc's own thread waits for the next request, whether the stream lives or not
        self._hand_over(error)

    def _hand_over(self, item: Any) -> None:
        self._read_ahead.append(item)
        if len(self._read_ahead) > 1:
            return  # the loop was woken for the first and has not come yet: it takes this one along
        try:
            self._loop.call_soon_threadsafe(self._take_over)
        except RuntimeError:
            pass  # the loop is closed: nobody listens any more

    def _take_over(self) -> None:
        # what the thread adds behind something that is still here is seen by this loop's next turn
        while self._read_ahead:
            self._responses.put_nowait(self._read_ahead.popleft())


async def _result(future: Any) -> Any:
    """Await a future of grpc's synchronous API."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def wake(_: Any) -> None:
        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    future.add_done_callback(wake)
    try:
        await done
    except asyncio.CancelledError:
        future.cancel()
        raise
    return future.result()


def _translate(op: str, exc: grpc.RpcError, endpoint: str) -> StoreError:
    """The one place where grpc's status codes become our errors."""
    code, details = exc.code(), exc.details() or ""
    message = f"{endpoint}: {details or code.name}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return StoreTimeout(op, message)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseNotFound(op)
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Compacted(op)
    if code is grpc.StatusCode.UNAUTHENTICATED and "token" in details:
        return _TokenExpired(op, message)
    if code in _REFUSALS:
        return StoreRejected(op, message)
    return StoreUnavailable(op, message)


_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)


def _compare(compare: Condition) -> Any:
    if isinstance(compare, OnLease):
        return rpc.Compare(key=compare.key, target=rpc.Compare.LEASE, result=rpc.Compare.EQUAL, lease=compare.lease)
    return rpc.Compare(
        key=compare.key,
        range_end=prefix_end(compare.key) if compare.prefix else b"",
        target=rpc.Compare.CREATE,
        result=rpc.Compare.EQUAL,
        create_revision=compare.create_revision,
    )


def _operation(operation: Operation) -> Any:
    if isinstance(operation, Put):
        put = rpc.PutRequest(key=operation.key, value=operation.value, lease=operation.lease)
        put.ignore_lease = operation.lease is None
        return rpc.RequestOp(request_put=put)
    assert isinstance(operation, Delete)
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=operation.key))


def _header(header: Any) -> Header:
    return Header(header.cluster_id, header.revision)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _events(events: Any) -> Iterator[Event]:
    for event in events:
        kv = event.kv
        yield Event(kv.key, kv.mod_revision, _key_value(kv) if event.type == 0 else None)


def _watch_response(response: Any) -> WatchResponse:
    header = _header(response.header)
    if response.compact_revision:
        return WatchResponse(header, compact_revision=response.compact_revision)
    if response.canceled:
        raise StoreRejected("watch", response.cancel_reason or "etcd cancelled the watch")
    return WatchResponse(header, list(_events(response.events)), response.created, response.fragment)
