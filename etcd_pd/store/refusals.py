"""What etcd's errors mean: the one place where its words and gRPC's codes become our errors."""

from __future__ import annotations

import grpc

from ..errors import (
    Compacted,
    LeaseNotFound,
    StoreBusy,
    StoreError,
    StoreRejected,
    StoreTimeout,
    StoreUnavailable,
)


class TokenExpired(StoreUnavailable):
    """etcd does not take this token (any more), and did nothing: authenticate again, and say it again."""


#: By etcd's own words, from its api/v3rpc/rpctypes/error.go: they are the same in calls, where a code comes with them,
#: and in a watch's reason of being cancelled, where none does.
WORDS: tuple[tuple[str, type[StoreError]], ...] = (
    ("invalid auth token", TokenExpired),  # etcd restarted, or the token was not used for five minutes
    ("revision of auth store is old", TokenExpired),  # a user or a role changed since it was given
    ("requested lease not found", LeaseNotFound),
    ("required revision has been compacted", Compacted),
    ("too many requests", StoreBusy),  # more than 5,000 entries of its log are not applied yet
    ("database space exceeded", StoreBusy),
    ("not supported for learner", StoreUnavailable),  # other members take it
    ("not capable", StoreUnavailable),  # amid an upgrade
    ("not leader", StoreUnavailable),
)
#: By gRPC's code, where etcd's words say nothing: what is refused finally. All others may be tried again elsewhere.
FINAL = frozenset(
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


def translate(op: str, code: grpc.StatusCode | None, words: str, endpoint: str) -> StoreError:
    """The error for what etcd said.

    Args:
        op: what was asked.
        code: gRPC's code, None where a watch was cancelled.
        words: etcd's.
        endpoint: who said it.
    """
    message = f"{endpoint}: {words or (code.name if code else 'cancelled')}"
    for known, error in WORDS:
        if known in words:
            return error(op) if issubclass(error, (LeaseNotFound, Compacted)) else error(op, message)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return StoreTimeout(op, message)
    if code is None or code in FINAL:
        return StoreRejected(op, message)
    return StoreUnavailable(op, message)
