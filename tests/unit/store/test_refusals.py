"""What etcd's errors mean. tests/contract has those of them from real servers that can be had from one."""

from __future__ import annotations

import grpc
import pytest

from etcd_pd.errors import (
    Compacted,
    LeaseNotFound,
    StoreBusy,
    StoreError,
    StoreRejected,
    StoreTimeout,
    StoreUnavailable,
)
from etcd_pd.store.refusals import WORDS, TokenExpired, translate

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "words", "error"),
    [
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", TokenExpired),
        (CODE.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", TokenExpired),
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
        (CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", StoreBusy),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", StoreBusy),
        (CODE.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner", StoreUnavailable),
        (CODE.FAILED_PRECONDITION, "etcdserver: not leader", StoreUnavailable),
        (CODE.UNAVAILABLE, "etcdserver: not capable", StoreUnavailable),
        (CODE.UNAVAILABLE, "etcdserver: no leader", StoreUnavailable),
        (CODE.UNAVAILABLE, "etcdserver: leader changed", StoreUnavailable),
        (CODE.UNAVAILABLE, "etcdserver: request timed out", StoreUnavailable),
        (CODE.UNAVAILABLE, "etcdserver: server stopped", StoreUnavailable),
        (CODE.DATA_LOSS, "etcdserver: corrupt cluster", StoreUnavailable),
        (CODE.UNKNOWN, "raft: stopped", StoreUnavailable),
        (CODE.CANCELLED, "", StoreUnavailable),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", StoreTimeout),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", StoreRejected),
        (CODE.INVALID_ARGUMENT, "etcdserver: request is too large", StoreRejected),
        (CODE.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", StoreRejected),
        (CODE.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", StoreRejected),
        (CODE.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", StoreRejected),
        (CODE.INVALID_ARGUMENT, "etcdserver: user name is empty", StoreRejected),
        (CODE.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", StoreRejected),
        (CODE.OUT_OF_RANGE, "etcdserver: too large lease TTL", StoreRejected),
        (CODE.RESOURCE_EXHAUSTED, "grpc: received message larger than max", StoreRejected),
        (CODE.UNIMPLEMENTED, "unknown service", StoreRejected),
        (None, "etcdserver: permission denied", StoreRejected),
        (None, "etcdserver: invalid auth token", TokenExpired),
        (None, "etcdserver: revision of auth store is old", TokenExpired),
        (None, "", StoreRejected),
    ],
)
def test_the_words_and_the_code_say_which_error_it_is(
    code: grpc.StatusCode | None, words: str, error: type[StoreError]
) -> None:
    found = translate("txn", code, words, "http://etcd:2379")
    assert type(found) is error
    assert found.op == "txn"
    if error not in (LeaseNotFound, Compacted):
        assert "http://etcd:2379" in str(found) and words in str(found)


def test_what_etcd_did_not_do_may_be_said_again_when_it_is_no_refusal() -> None:
    assert issubclass(StoreBusy, StoreUnavailable) and issubclass(TokenExpired, StoreUnavailable)
    assert not issubclass(StoreRejected, StoreUnavailable)


def test_no_words_stand_twice_and_none_is_part_of_another() -> None:
    words = [one for one, _ in WORDS]
    assert [a for a in words for b in words if a is not b and a in b] == []
