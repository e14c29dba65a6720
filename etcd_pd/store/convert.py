"""Between the core's records and etcd's messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.keys import prefix_end
from ..core.records import (
    Condition,
    Delete,
    Event,
    Header,
    KeyValue,
    MemberStatus,
    OnLease,
    Operation,
    WatchResponse,
)
from . import etcdrpc as rpc
from .refusals import translate

#: A status lists alarms among its errors, in protobuf's text format: ``memberID:1 alarm:NOSPACE``.
_ALARM = re.compile(r"\balarm:\s*(\w+)")


def to_txn(compares: Sequence[Condition], operations: Sequence[Operation]) -> Any:
    """A transaction. Its parts are made where they belong: made alone, protobuf would copy each."""
    request = rpc.TxnRequest()
    for condition in compares:
        _add_compare(request.compare, condition)
    for operation in operations:
        _add_operation(request.success, operation)
    return request


def _add_compare(compares: Any, condition: Condition) -> None:
    if isinstance(condition, OnLease):
        compares.add(key=condition.key, target=rpc.Compare.LEASE, result=rpc.Compare.EQUAL, lease=condition.lease)
        return
    key, created, prefix = condition
    added = compares.add(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=created)
    if prefix:
        added.range_end = prefix_end(key)


def _add_operation(operations: Any, operation: Operation) -> None:
    if isinstance(operation, Delete):
        operations.add().request_delete_range.key = operation.key
        return
    put = operations.add().request_put
    put.key, put.value = operation.key, operation.value
    if operation.lease is None:
        put.ignore_lease = True
    else:
        put.lease = operation.lease


def read_header(header: Any) -> Header:
    """What every answer begins with."""
    return Header(header.cluster_id, header.revision)


def read_key_value(kv: Any) -> KeyValue:
    """A key and all that etcd says of it."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def read_status(status: Any) -> MemberStatus:
    """What a member says of itself."""
    return MemberStatus(
        id=status.header.member_id,
        version=status.version,
        leader=status.leader,
        revision=status.header.revision,
        raft_term=status.raftTerm,
        db_size=status.dbSize,
        db_size_in_use=status.dbSizeInUse,
        is_learner=status.isLearner,
        alarms=tuple(_ALARM.findall(" ".join(status.errors))),
    )


def read_watch_response(response: Any, endpoint: str) -> WatchResponse:
    """A message of a watch.

    Raises:
        StoreError: etcd has cancelled the watch.
    """
    header = read_header(response.header)
    if response.compact_revision:
        return WatchResponse(header, compact_revision=response.compact_revision)
    if response.canceled:
        raise translate("watch", None, response.cancel_reason, endpoint)
    return WatchResponse(header, list(_read_events(response.events)), response.created, response.fragment)


def _read_events(events: Any) -> Iterator[Event]:
    for event in events:
        kv = event.kv
        yield Event(kv.key, kv.mod_revision, read_key_value(kv) if event.type == 0 else None)
