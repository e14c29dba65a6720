"""The decode side of the plug-in: topology, rank addresses and rooms from the registry, and deaths as they happen.

Where the registry cannot tell, or a room is missing in it, SGLang's own bootstrap server is asked; and nothing that
SGLang began is ended because a key is gone, only because a rank is.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from ..client import DecodeEvent, Described, Ended
from ..config import bracketed
from ..errors import AgentBusy, ConfigError, PrefillLost, ResolveError, RoomTimeout
from ..wire.values import PrefillInstance, Rank
from .fingerprint import differences
from .guard import Original
from .route import is_complete, is_of_start, rank_info, server_info
from .scheduler_session import Session, awaits_rank, fail_room, forget_moved, is_final, now

log = logging.getLogger(__name__)

#: Longest wait for the agent's first word on an instance: once an address, where SGLang would make an HTTP request.
FIRST_WORD_SECONDS = 0.2
#: How long a room may be missing in a registry that is up to date before SGLang's own server is asked too, how often
#: that is asked then, and how often a room that went SGLang's way is looked for in the registry again.
LOOK_SECONDS = 1.0
#: Shortest time between two lines that count rooms.
REPORT_SECONDS = 60.0


@dataclass
class _Room:
    """A request's room: its manager, its deadline, since when it waits, and from when on it may be wanted (again)."""

    manager: Any
    deadline: float
    since: float
    want_at: float = 0.0
    dp_rank: int | None = None  # where SGLang knows it


class DecodeSide:
    """One decode process.

    Args:
        session: the connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rooms: dict[tuple[str, int], _Room] = {}
        self._described: set[str] = set()
        self._used: dict[str, tuple[str, Any]] = {}  # whose topology a manager holds, by address; "" where unknown
        self._refused: dict[str, str] = {}  # why nothing is fetched from an address
        self._asked_sglang: dict[str, float] = {}  # when its own server was asked last, by address
        self._retry_at = self._report_at = 0.0
        self._by_sglang = 0  # rooms whose rank SGLang's own server gave, since the last report

    def start(self, manager: Any) -> None:
        """This process decodes: from now on etcd shows it, or the first of those that share its DP rank."""
        from sglang.srt.runtime_context import get_serving

        address = f"{bracketed(manager.local_ip)}:{get_serving().port}"
        instance = os.environ.get("ETCD_PD_INSTANCE") or address
        if manager.system_dp_size * manager.attn_dp_size > 1:
            instance += f"-dp{manager.system_dp_rank if manager.system_dp_size > 1 else manager.attn_dp_rank}"
        if manager.attn_tp_rank or manager.attn_cp_rank or manager.pp_rank:
            return
        with self._session.lock:
            try:
                self._session.client.decode.announce(instance, address=address)
            except (AgentBusy, ConfigError) as exc:
                log.warning("etcd_pd: this decode is not announced: %s", exc)
            self._session.tick()
        log.info("etcd_pd: decode instance=%s", instance)

    # --- rooms

    def made(self, receiver: Any) -> None:
        """A request arrived: want its room now, so that its rank is there when SGLang asks."""
        from sglang.srt.environ import envs

        address, room = receiver.bootstrap_addr, receiver.bootstrap_room
        with self._session.lock:
            self._follow(address)
            if type(room) is int:
                deadline = now() + float(envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT.get())
                self._rooms[address, room] = _Room(receiver.kv_mgr, deadline, now())
                if self._instance(address):
                    self._want(address, room)

    def initialised(self, receiver: Any) -> None:
        """SGLang decided on a rank. Where the registry did not answer that, name it there, to learn of its death."""
        address, room = receiver.bootstrap_addr, receiver.bootstrap_room
        dp_rank = getattr(receiver, "prefill_dp_rank", None)
        with self._session.lock:
            known = self._rooms.get((address, room))
            if known is None or dp_rank is None:
                return
            known.dp_rank = dp_rank
            if self._instance(address) and self._dp_rank(address, room) is None:
                self._session.client.decode.done(address, room)
                self._want(address, room)

    def query(self, original: Original, address: str, rooms: list[int]) -> dict[str, int]:
        """The ranks of those rooms that are registered."""
        with self._session.lock:
            self._session.tick()
            found: dict[str, int] = {}
            if self._instance(address):
                for room in rooms:
                    self._want(address, room)
                    dp_rank = self._dp_rank(address, room)
                    if dp_rank is not None:
                        found[str(room)] = dp_rank
            missing = self._due_at_sglang(address, [room for room in rooms if str(room) not in found])
        if missing:  # without the lock, since it blocks
            answer = original(address, missing)
            with self._session.lock:
                answer = {room: dp_rank for room, dp_rank in answer.items() if self._may_serve(address, dp_rank)}
                self._by_sglang += len(answer)
            found |= answer
        return found

    def cleared(self, receiver: Any) -> None:
        """A request is over."""
        key = (receiver.bootstrap_addr, receiver.bootstrap_room)
        with self._session.lock:
            if self._rooms.pop(key, None) is not None:
                self._session.client.decode.done(*key)

    def retry(self) -> None:
        """Rooms that went SGLang's own way are wanted again, so that a rank's death is known again once it is back."""
        if now() < self._retry_at:
            return
        self._retry_at = now() + LOOK_SECONDS
        self._report()
        for (address, room), known in self._rooms.items():
            if known.want_at and self._instance(address):
                self._want(address, room)

    # --- topology

    def topology(self, original: Original, manager: Any, address: str) -> bool:
        """SGLang's own fetch-and-check of an instance's topology, with the registry's answer in it."""
        if address in manager.prefill_info_table:
            return True
        with self._session.lock:
            self._first_word(address)
            instance = self._instance(address) if self._session.synced else None
        if instance is None or not is_complete(instance):
            return self._use(address, "", manager, original(manager, address))
        if self._refuse(manager, address, instance):
            return False
        answered = original.call_answered(server_info(instance), manager, address)
        return self._use(address, instance.info.incarnation, manager, answered)

    def rank_endpoint(self, original: Original, receiver: Any, place: tuple[int, int, int, int]) -> Any:
        """Where one rank hands over KV caches; None where it is not there."""
        with self._session.lock:
            instance = self._instance(receiver.bootstrap_addr) if self._session.synced else None
        found = rank_info(instance, Rank(*map(int, place))) if instance else None
        return {**found, "pp_rank": int(place[-1])} if found else original(receiver, *place)

    def _use(self, address: str, incarnation: str, manager: Any, answered: bool) -> bool:
        """Remember whose topology a manager holds from now on, if it does."""
        if answered:
            self._used[address] = (incarnation, manager)
        return bool(answered)

    def _refuse(self, manager: Any, address: str, instance: PrefillInstance) -> bool:
        """Whether that instance's KV caches are of no use here; SGLang itself would end this process for some."""
        reason = differences(manager, instance)
        if reason and self._refused.get(address) != reason:
            log.error("etcd_pd: nothing is fetched from %s (%s): %s", instance.id, address, reason)
        if not reason:
            self._refused.pop(address, None)
            return False
        self._refused[address] = reason
        for (of, room), known in self._rooms.items():
            if of == address:
                fail_room(known.manager, room, f"prefill {instance.id} does not fit: {reason}")
        return True

    # --- events

    def on_event(self, event: DecodeEvent) -> None:
        """Events from the agent."""
        if isinstance(event, Described):
            self._described.add(event.name)
            self._check_used(event.name, event.instance)
        elif isinstance(event, Ended):
            self._end(event.error)

    def _check_used(self, address: str, instance: PrefillInstance | None) -> None:
        """Another start of an instance: drop what SGLang remembers of the one before, as its heartbeat would."""
        incarnation, manager = self._used.get(address, ("", None))
        held = manager.prefill_info_table.get(address) if manager else None
        if held is None:
            self._used.pop(address, None)  # SGLang's own heartbeat came first
        elif instance is None or not (incarnation or self._session.synced):
            return
        elif same := is_of_start(held, incarnation, instance):
            self._used[address] = (instance.info.incarnation, manager)
            forget_moved(manager, address, instance)
        elif same is False:
            self._drop(address)

    def _drop(self, address: str) -> None:
        _, manager = self._used.pop(address, ("", None))
        if manager is not None:
            manager._handle_node_failure(address)

    def _end(self, error: ResolveError) -> None:
        """A wait has ended: by what happened to the request's rank, or only by what the registry can say of it."""
        key = address, room = error.instance, error.room
        known = self._rooms.get(key)
        if known is None:
            return
        if isinstance(error, RoomTimeout) and awaits_rank(known.manager, room):
            fail_room(known.manager, room, str(error))
        elif is_final(error):
            fail_room(known.manager, room, str(error))
            if isinstance(error, PrefillLost) and self._instance(address) is None:
                self._drop(address)
        else:
            log.debug("etcd_pd: room %d of %s goes on without the registry: %s", room, address, error)
            self._session.client.decode.done(address, room)
            known.want_at = now() + LOOK_SECONDS

    # --- parts

    def _report(self) -> None:
        """A line a minute in which rooms went SGLang's way."""
        if self._by_sglang and now() >= self._report_at:
            log.info("etcd_pd: SGLang's own bootstrap server gave the ranks of %d rooms", self._by_sglang)
            self._by_sglang, self._report_at = 0, now() + REPORT_SECONDS

    def _instance(self, address: str) -> PrefillInstance | None:
        return self._session.client.decode.instance(address)

    def _due_at_sglang(self, address: str, missing: list[int]) -> list[int]:
        """Which of these rooms SGLang's own server is asked for now."""
        if not missing or not (self._session.synced and self._instance(address)):
            return missing
        due = [room for room in missing if now() - self._since(address, room) >= LOOK_SECONDS]
        if not due or now() < self._asked_sglang.get(address, 0.0) + LOOK_SECONDS:
            return []
        self._asked_sglang[address] = now()
        return due

    def _since(self, address: str, room: int) -> float:
        known = self._rooms.get((address, room))
        return known.since if known else 0.0

    def _may_serve(self, address: str, dp_rank: int) -> bool:
        """Whether a rank that SGLang's own server named is not known to be gone."""
        instance = self._instance(address) if self._session.synced else None
        if instance is None or not is_complete(instance):
            return True
        return any(one.rank.dp == dp_rank for one in instance.ranks)

    def _follow(self, address: str) -> None:
        if address not in self._described:
            try:
                self._session.client.decode.follow(address)
            except (AgentBusy, ConfigError) as exc:
                log.warning("etcd_pd: %s is not followed: %s", address, exc)

    def _first_word(self, address: str) -> None:
        self._follow(address)
        deadline = now() + FIRST_WORD_SECONDS
        while address not in self._described and self._session.connected and now() < deadline:
            self._session.wait(deadline - now())

    def _want(self, address: str, room: int) -> None:
        known = self._rooms.get((address, room))
        if known is None or now() < known.want_at:
            return
        known.want_at = 0.0
        try:
            timeout = max(known.deadline - now(), 0.001)
            self._session.client.decode.want(address, room, timeout=timeout, dp_rank=known.dp_rank)
        except (AgentBusy, ConfigError) as exc:
            log.error("etcd_pd: room %s of %s is not waited for: %s", room, address, exc)

    def _dp_rank(self, address: str, room: int) -> int | None:
        try:
            found = self._session.client.decode.peek(address, room)
        except (ResolveError, ConfigError):
            return None  # it ended, or is not wanted at present
        return found.dp_rank if found else None
