"""A room book for tests of what it writes: it counts what is said to it, and keeps apart what became durable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etcd_pd.core.batch import Batch, Durable, EpochIsDead, Outcome
from etcd_pd.core.book import RoomBook
from etcd_pd.core.lease import Bucket
from etcd_pd.core.own_room import RankRef
from etcd_pd.core.records import Listing
from etcd_pd.errors import StoreRejected


class NumberedBook:
    """A :class:`RoomBook` whose callers need not count.

    Attributes:
        inner: the book.
        durable: endings that are, in order.
        number: of what was said last.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.inner = RoomBook(*args, **options)
        self.durable: list[Durable] = []
        self.number = 0

    def _next(self) -> int:
        self.number += 1
        return self.number

    def __len__(self) -> int:
        return len(self.inner)

    def _sift(self, outcomes: list[Outcome]) -> list[Outcome]:
        self.durable += [outcome for outcome in outcomes if isinstance(outcome, Durable)]
        return [outcome for outcome in outcomes if not isinstance(outcome, Durable)]

    def register(self, owner: object, rank: RankRef, room: int, now: float) -> list[Outcome]:
        return self._sift(self.inner.register(owner, rank, room, self._next(), now))

    def register_lot(self, owner: object, rank: RankRef, rooms: Sequence[int], now: float) -> list[Outcome]:
        numbered = [(room, self._next()) for room in rooms]
        return self._sift(self.inner.register_lot(owner, rank, numbered, now))

    def release(self, rank: RankRef, room: int, owner: object = "e") -> list[Outcome]:
        return self._sift(self.inner.release(owner, rank, room, self._next()))

    def fail(self, rank: RankRef, room: int, reason: str, now: float, owner: object = "e") -> None:
        assert not self._sift(self.inner.fail(owner, rank, room, reason, self._next(), now))

    def adopt(
        self, rank: RankRef, epoch: int, room: int, token: int, lease_id: int, now: float, owner: object = "e"
    ) -> None:
        self.inner.adopt(owner, rank, epoch, room, token, lease_id, now)

    def end_rank(self, rank: RankRef, *, gone: bool) -> list[Outcome]:
        return self._sift(self.inner.end_rank(rank, gone=gone))

    def confirm(self, batch: Batch, bucket: Bucket | None, revision: int, now: float) -> list[Outcome]:
        return self._sift(self.inner.results.confirm(batch, bucket, revision, now))

    def read_back(
        self, batch: Batch, bucket: Bucket | None, listing: Listing, is_dead: EpochIsDead, now: float
    ) -> list[Outcome]:
        return self._sift(self.inner.results.read_back(batch, bucket, listing, is_dead, now))

    def refuse(self, batch: Batch, error: StoreRejected) -> list[Outcome]:
        return self._sift(self.inner.results.refuse(batch, error))

    def give_up(self, batch: Batch, now: float) -> list[Outcome]:
        return self._sift(self.inner.results.give_up(batch, now))

    def expire(self, now: float) -> list[Outcome]:
        return self._sift(self.inner.expire(now))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
