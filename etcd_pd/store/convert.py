"""Between the core's records and etcd's messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.keys import prefix_end
from ..core.records import Condition, Delete, Event, Header, KeyValue, OnLease, Operation, Put, WatchResponse
from ..errors import StoreRejected
from . import etcdrpc as rpc


def to_compare(condition: Condition) -> Any:
    """A compare of a transaction."""
    if isinstance(condition, OnLease):
        return rpc.Compare(key=condition.key, target=rpc.Compare.LEASE, result=rpc.Compare.EQUAL, lease=condition.lease)
    return rpc.Compare(
        key=condition.key,
        range_end=prefix_end(condition.key) if condition.prefix else b"",
        target=rpc.Compare.CREATE,
        result=rpc.Compare.EQUAL,
        create_revision=condition.create_revision,
    )


def to_operation(operation: Operation) -> Any:
    """An operation of a transaction."""
    if isinstance(operation, Put):
        put = rpc.PutRequest(key=operation.key, value=operation.value, lease=operation.lease)
        put.ignore_lease = operation.lease is None
        return rpc.RequestOp(request_put=put)
    assert isinstance(operation, Delete)
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=operation.key))


def read_header(header: Any) -> Header:
    """What every answer begins with."""
    return Header(header.cluster_id, header.revision)


def read_key_value(kv: Any) -> KeyValue:
    """A key and all that etcd says of it."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def read_watch_response(response: Any) -> WatchResponse:
    """A message of a watch.

    Raises:
        StoreRejected: etcd has cancelled the watch.
    """
    header = read_header(response.header)
    if response.compact_revision:
        return WatchResponse(header, compact_revision=response.compact_revision)
    if response.canceled:
        raise StoreRejected("watch", response.cancel_reason or "etcd cancelled the watch")
    return WatchResponse(header, list(_read_events(response.events)), response.created, response.fragment)


def _read_events(events: Any) -> Iterator[Event]:
    for event in events:
        kv = event.kv
        yield Event(kv.key, kv.mod_revision, read_key_value(kv) if event.type == 0 else None)
