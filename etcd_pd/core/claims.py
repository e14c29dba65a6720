"""How a rank process gets its key in etcd, and its instance's: what to write next, given what etcd holds.

etcd decides who owns an instance's name: the first announcer creates its key, others of the same launch join, and
everybody else waits for it to vanish or is refused. A rank's key is written together with its instance's, if both are
still what was read. A claim whose outcome is not known is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import InstanceConflict
from ..wire.to_agent import Announce
from ..wire.values import ENDED, InstanceInfo, Rank, RankEndpoint, leaving
from .batch import Guard
from .keys import Keys
from .own_room import RankRef
from .records import Compare, Condition, Delete, Header, KeyValue, Listing, OnLease, Operation, Put
from .view import View

#: Most keys of a rank that a transaction compares, of etcd's 128: what is left is for rooms.
MOST_COMPARES = 64


@dataclass(eq=False)
class LocalRank:
    """A rank process that this agent serves.

    Attributes:
        instance: the instance's id.
        rank: its place in the topology.
        info: what it says of its instance; the incarnation is etcd's to decide.
        endpoint: where it hands over KV caches.
        key_epoch: create_revision of its key, 0 while the key is not known to stand.
        lease_id: the lease that the key hangs on.
        known_epoch: the DP rank's epoch that its engine knows of, 0 for none.
        linger: seconds that it stays after its connection broke.
        unsure_since: revision of etcd before a claim whose outcome is not known, 0 where there is none.
        seen: how far its engine has seen etcd; None once a claim has shown that etcd still is that one.
        renounced: ``known_epoch`` is another history's, whatever its number.
        draining: it takes no new rooms.
        drained: its engine knows that it has none left.
        leaving: its engine said goodbye.
        process: the name of the process that spoke for it until its connection broke.
    """

    instance: str
    rank: Rank
    info: InstanceInfo
    endpoint: RankEndpoint
    key_epoch: int = 0
    lease_id: int = 0
    known_epoch: int = 0
    linger: float = 0.0
    unsure_since: int = 0
    seen: Header | None = None
    renounced: bool = False
    draining: bool = False
    drained: bool = False
    leaving: bool = False
    process: str = ""

    @classmethod
    def announced(cls, said: Announce, seen: Header | None = None) -> LocalRank:
        """As an engine announces it that has seen etcd so far."""
        local = cls(said.instance, said.rank, said.info, said.endpoint, said.key_epoch, linger=said.linger, seen=seen)
        local.known_epoch = said.epoch
        return local

    def __post_init__(self) -> None:
        #: The DP rank that it is part of.
        self.ref = RankRef(self.instance, self.rank.dp)

    @property
    def name(self) -> str:
        """The rank, as people call it."""
        return self.rank.name(self.info.topology)

    @property
    def incarnation(self) -> str:
        """The start of the instance that it belongs to, empty before etcd decided."""
        return self.endpoint.incarnation

    def outlive(self) -> None:
        """Its engine has seen another history, whatever revision this one comes to before its next claim."""
        if self.seen:
            self.seen = Header(-1, 0)

    def renounce(self) -> None:
        """etcd has another history: a key that it has of this rank belongs to a life that is over."""
        self.key_epoch, self.unsure_since, self.seen, self.renounced = 0, 0, None, True
        self.info = replace(self.info, began=0)


class Write(NamedTuple):
    """A transaction for a rank.

    Attributes:
        endpoint: what its key holds afterwards; None where only a leftover is cleared out of its way.
        joins: its key stands already, and keeps its create_revision.
        began: revision at which its start began, 0 where that is this one.
    """

    conditions: list[Condition]
    operations: list[Operation]
    endpoint: RankEndpoint | None = None
    joins: bool = False
    began: int = 0


class Blocked(NamedTuple):
    """Nothing can be written yet; who or what stands in the way."""

    obstacle: str
    lease: int = 0  #: what it hangs on, where it is a key


class Claims:
    """Decides what is written for local ranks.

    Args:
        keys: the key layout.
        new_incarnation: draws the name of a new start of an instance.
    """

    def __init__(self, keys: Keys, new_incarnation: Callable[[], str]) -> None:
        self._keys, self._new_incarnation = keys, new_incarnation

    def next_step(self, local: LocalRank, listing: Listing, lease_id: int) -> Write | Blocked:
        """What to do for a rank's claim.

        Args:
            listing: of all keys under its instance's.
            lease_id: the session's lease.

        Raises:
            InstanceConflict: waiting would not help.
        """
        info_key, rank_key = self._keys.prefill(local.instance), self._keys.rank(local.instance, local.rank)
        found = {kv.key: kv for kv in listing.kvs}
        info_kv, rank_kv = found.get(info_key), found.get(rank_key)
        self._compare(local, listing)
        self._recognise(local, rank_kv, lease_id)
        info = self._choose_info(local, info_kv, found)
        if isinstance(info, Blocked):
            return info
        if info is None:
            assert info_kv is not None
            return Write(abandoned(info_kv), [Delete(info_kv.key)])
        if rank_kv is not None and not self._is_ours(local, rank_kv, lease_id):
            return Blocked(f"another process as rank {local.name}", rank_kv.lease)
        local.unsure_since = local.unsure_since or listing.header.revision
        endpoint = replace(local.endpoint, incarnation=info.incarnation)
        conditions: list[Condition] = [
            Compare(info_key, info_kv.create_revision if info_kv else 0),
            Compare(rank_key, rank_kv.create_revision if rank_kv else 0),
            OnLease(rank_key, rank_kv.lease if rank_kv else 0),
        ]
        values = {info_key: info.to_json(), rank_key: endpoint.to_json()}
        operations: list[Operation] = [Put(key, value, lease_id) for key, value in values.items()]
        began = info.began or (info_kv.create_revision if info_kv else 0)
        return Write(conditions, operations, endpoint, rank_kv is not None, began)

    def finish(self, local: LocalRank, step: Write, revision: int, lease_id: int) -> Blocked | None:
        """A transaction was answered: None where the key stands under the lease, else what stands in the way.

        Args:
            revision: at which it happened, 0 where its conditions did not hold.
        """
        if step.endpoint is None:
            return Blocked("an instance that has just ended")
        local.unsure_since = 0
        if not revision:
            return Blocked("a start that raced with this one")
        local.endpoint, local.lease_id, local.seen = step.endpoint, lease_id, None
        local.key_epoch = local.key_epoch if step.joins else revision
        local.info = replace(local.info, began=step.began or revision)
        return None

    def recover(self, local: LocalRank, listing: Listing, lease_id: int) -> None:
        """A claim was cut off, and its rank is going: what it had written is its own.

        Args:
            listing: of the rank's key.
        """
        self._compare(local, listing)
        rank_kv = listing.kvs[0] if listing.kvs else None
        self._recognise(local, rank_kv, lease_id)
        if rank_kv is not None and self._is_ours(local, rank_kv, lease_id):
            local.lease_id = rank_kv.lease

    def _compare(self, local: LocalRank, listing: Listing) -> None:
        if local.seen and not listing.header.continues(local.seen):
            local.renounce()

    def _choose_info(
        self, local: LocalRank, info_kv: KeyValue | None, found: dict[bytes, KeyValue]
    ) -> InstanceInfo | Blocked | None:
        """The InstanceInfo to stand under; None where a leftover is to be deleted first."""
        prefix = self._keys.prefill(local.instance) + b"/ranks/"
        ranks = [kv for key, kv in found.items() if key.startswith(prefix)]
        endpoints = [RankEndpoint.from_json(local.rank, kv.value, 0) for kv in ranks]
        lease = ranks[0].lease if ranks else 0
        if info_kv is None:
            incarnation = local.incarnation or self._new_incarnation()
            if any(endpoint and endpoint.incarnation != incarnation for endpoint in endpoints):
                return Blocked("ranks of an earlier start", lease)
            return replace(local.info, incarnation=incarnation)
        info = InstanceInfo.from_json(info_kv.value)
        if info is None or info.launch_id != local.info.launch_id or info.state == ENDED:
            holder = f"launch {info.launch_id}" if info else "a key that is not ours"
            return Blocked(holder, lease) if endpoints else None
        if info.topology != local.info.topology:
            raise InstanceConflict(local.instance, f"the same launch with another topology, {info.topology}")
        return info

    def _is_ours(self, local: LocalRank, rank_kv: KeyValue, lease_id: int) -> bool:
        """Whether a rank's key is the one that we wrote, or that our engine's earlier agent left to us.

        Another agent that has taken the key over since then keeps its create_revision, under its own lease.
        """
        taken_over = local.lease_id and rank_kv.lease not in (local.lease_id, lease_id)
        return rank_kv.create_revision == local.key_epoch and not taken_over

    def _recognise(self, local: LocalRank, rank_kv: KeyValue | None, lease_id: int) -> None:
        """A claim may have happened without an answer: its key came later, under our lease, and leads to our engine."""
        if rank_kv is None or not local.unsure_since or rank_kv.create_revision <= local.unsure_since:
            return
        endpoint = RankEndpoint.from_json(local.rank, rank_kv.value, 0)
        same = endpoint and (endpoint.ip, endpoint.port) == (local.endpoint.ip, local.endpoint.port)
        if endpoint and same and rank_kv.lease == lease_id:
            local.key_epoch = rank_kv.create_revision
            local.endpoint = replace(local.endpoint, incarnation=endpoint.incarnation)

    # --- taking it out again

    def withdraw(self, local: LocalRank) -> tuple[list[Condition], list[Operation]]:
        """The transaction that deletes a rank's key, if it is still its own."""
        key = self._keys.rank(local.instance, local.rank)
        return [Compare(key, local.key_epoch), OnLease(key, local.lease_id)], [Delete(key)]

    def end_instance(
        self, local: LocalRank, info_kv: KeyValue | None
    ) -> Iterable[tuple[list[Condition], list[Operation]]]:
        """The transactions that end a rank's instance, if no rank of it is left.

        That it has ended is said first: a key that only vanishes may come back with the session of its agent.
        """
        info = InstanceInfo.from_json(info_kv.value) if info_kv else None
        if not info_kv or not info or info.incarnation != local.incarnation:
            return
        if info.state != ENDED:
            word = replace(info, state=ENDED).to_json()
            left = local.leaving or local.draining
            yield abandoned(info_kv), [Put(info_kv.key, leaving(word) if left else word, None)]
        yield abandoned(info_kv), [Delete(info_kv.key)]


def abandoned(info_kv: KeyValue) -> list[Condition]:
    """That an instance's key is the one that was read, and that no rank of it exists."""
    return [Compare(info_kv.key, info_kv.create_revision), Compare(info_kv.key + b"/ranks/", 0, prefix=True)]


def has_vanished(local: LocalRank, view: View) -> bool:
    """Whether a rank that stood, or its instance, is gone from etcd as far as the view shows."""
    instance = view.instances.get(local.instance)
    endpoint = instance.endpoints.get(local.rank) if instance else None
    # the view may be older than our own write; it is never older than what it once showed
    vanished = view.revision >= local.key_epoch and (endpoint is None or endpoint.epoch != local.key_epoch)
    return vanished or bool(instance and not instance.info_key_exists)


def is_empty(id: str, view: View) -> bool:
    """Whether an instance's key stands without any rank, as far as the view shows."""
    instance = view.instances.get(id)
    return bool(instance and instance.info_key_exists and not instance.endpoints)


def guard_of(ref: RankRef, locals: Iterable[LocalRank], view: View) -> Guard | None:
    """What every registration of a local DP rank is compared with; None while the rank is not live."""
    epoch = view.epoch(*ref)
    known = [one for one in locals if one.ref == ref and one.known_epoch]
    local = next((one for one in known if one.key_epoch and one.known_epoch == epoch), None)
    if not epoch or local is None:
        return None
    endpoints, incarnation = view.instances[ref.instance].endpoints, local.endpoint.incarnation
    own = endpoints.get(local.rank)
    if own is None or own.epoch != local.key_epoch:
        return None  # written anew, which the view does not know yet: its epoch is over
    # the epoch ends with any of the rank's keys, so all are compared; the newest first, which is the epoch
    made = [
        (endpoint.epoch, rank)
        for rank, endpoint in endpoints.items()
        if rank.dp == ref.dp_rank and endpoint.incarnation == incarnation
    ]
    made = sorted(made, reverse=True)[:MOST_COMPARES]
    compares = tuple(Compare(view.keys.rank(ref.instance, rank), created) for created, rank in made)
    return Guard(epoch, compares, view.history, is_ready=all(one.known_epoch == epoch for one in known))
