"""The one place where grpc's status codes become our errors."""

from __future__ import annotations

import grpc

from ..errors import Compacted, LeaseNotFound, StoreError, StoreRejected, StoreTimeout, StoreUnavailable


class TokenExpired(StoreUnavailable):
    """etcd does not know the token (any more): it must be asked for again."""


def translate(op: str, exc: grpc.RpcError, endpoint: str) -> StoreError:
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
        return TokenExpired(op, message)
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
