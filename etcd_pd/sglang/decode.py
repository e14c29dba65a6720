"""The decode side of the plug-in: topology, rank addresses and rooms from the registry, and deaths as they happen."""

from __future__ import annotations

import inspect
import logging
import types
from collections.abc import Callable
from typing import Any

from ..client import DecodeEvent, Described, Ended
from ..errors import AgentBusy, ConfigError, ResolveError
from ..wire.values import PrefillInstance, Rank
from .route import is_complete, rank_info, server_info
from .scheduler_session import Session, fail_room, now

log = logging.getLogger(__name__)

#: Longest wait for the agent's first word on an instance: once an address, where SGLang would make an HTTP request.
FIRST_WORD_SECONDS = 0.2


class DecodeSide:
    """One decode process.

    Args:
        session: the connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._managers: dict[tuple[str, int], Any] = {}  # whose room it is
        self._described: set[str] = set()
        self._used: dict[str, tuple[str, Any]] = {}  # the incarnation whose topology a manager holds, by address

    # --- rooms

    def made(self, receiver: Any) -> None:
        """A request arrived: want its room now, so that its rank is there when SGLang asks."""
        address, room = receiver.bootstrap_addr, receiver.bootstrap_room
        with self._session.lock:
            self._follow(address)
            if type(room) is int:
                self._managers[address, room] = receiver.kv_mgr
                if self._instance(address):
                    self._want(address, room)

    def initialised(self, receiver: Any) -> None:
        """SGLang decided on a rank. Where the registry did not answer that, name it there, to learn of its death."""
        address, room, dp_rank = (
            receiver.bootstrap_addr,
            receiver.bootstrap_room,
            getattr(receiver, "prefill_dp_rank", None),
        )
        with self._session.lock:
            if (address, room) not in self._managers or dp_rank is None or self._instance(address) is None:
                return
            if self._dp_rank(address, room) is None:
                self._session.client.decode.done(address, room)
                self._want(address, room, dp_rank)

    def query(self, original: Callable[..., dict[str, int]], address: str, rooms: list[int]) -> dict[str, int]:
        """The ranks of those rooms that are registered."""
        with self._session.lock:
            self._session.tick()
            if self._instance(address) is None:
                unknown = True
            else:
                unknown = False
                for room in rooms:
                    self._want(address, room)
                found = {room: self._dp_rank(address, room) for room in rooms}
        if unknown:  # not announced by this plug-in: without the lock, since it blocks
            return original(address, rooms)
        return {str(room): dp_rank for room, dp_rank in found.items() if dp_rank is not None}

    def cleared(self, receiver: Any) -> None:
        """A request is over."""
        key = (receiver.bootstrap_addr, receiver.bootstrap_room)
        with self._session.lock:
            if self._managers.pop(key, None) is not None:
                try:
                    self._session.client.decode.done(*key)
                except AgentBusy:
                    pass

    # --- topology

    def topology(self, original: Callable[..., bool], manager: Any, address: str) -> bool:
        """SGLang's own fetch-and-check of an instance's topology, with the registry's answer in it."""
        if address in manager.prefill_info_table:
            return True
        with self._session.lock:
            self._first_word(address)
            instance = self._instance(address)
        if instance is None:
            return bool(original(manager, address))
        if not is_complete(instance):
            return False
        if not _answered(original, server_info(instance))(manager, address):
            return False
        self._used[address] = (instance.info.incarnation, manager)
        return True

    def rank_endpoint(
        self,
        original: Callable[..., Any],
        receiver: Any,
        prefill_dp_rank: int,
        prefill_cp_rank: int,
        target_tp_rank: int,
        target_pp_rank: int,
    ) -> Any:
        """Where one rank hands over KV caches; None where it is not there."""
        place = (prefill_dp_rank, prefill_cp_rank, target_tp_rank, target_pp_rank)
        with self._session.lock:
            instance = self._instance(receiver.bootstrap_addr)
        if instance is None:
            return original(receiver, *place)
        found = rank_info(instance, Rank(*map(int, place)))
        if found is None:
            log.error("etcd_pd: %s has no rank %s", receiver.bootstrap_addr, place)
            return None
        return {**found, "pp_rank": int(target_pp_rank)}

    # --- events

    def on_event(self, event: DecodeEvent) -> None:
        """Events from the agent."""
        if isinstance(event, Described):
            self._described.add(event.name)
            self._check_used(event.name, event.instance)
        elif isinstance(event, Ended):
            self._fail(event.error)

    def _check_used(self, address: str, instance: PrefillInstance | None) -> None:
        """An instance that is gone, or is another start: drop what SGLang remembers of it, as its heartbeat would."""
        incarnation, manager = self._used.get(address, ("", None))
        if manager is not None and (instance is None or instance.info.incarnation != incarnation):
            del self._used[address]
            manager._handle_node_failure(address)

    def _fail(self, error: ResolveError) -> None:
        manager = self._managers.get((error.instance, error.room))
        if manager is not None:
            fail_room(manager, error.room, str(error))

    # --- parts

    def _instance(self, address: str) -> PrefillInstance | None:
        return self._session.client.decode.instance(address)

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

    def _want(self, address: str, room: int, dp_rank: int | None = None) -> None:
        from sglang.srt.environ import envs

        timeout = float(envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT.get())
        try:
            self._session.client.decode.want(address, room, timeout=timeout, dp_rank=dp_rank)
        except (AgentBusy, ConfigError) as exc:
            log.error("etcd_pd: room %s of %s is not waited for: %s", room, address, exc)

    def _dp_rank(self, address: str, room: int) -> int | None:
        try:
            found = self._session.client.decode.peek(address, room)
        except (ResolveError, ConfigError):
            return None  # it ended: its receiver has been failed
        return found.dp_rank if found else None


def _answered(function: Callable[..., bool], body: dict[str, Any]) -> Callable[..., bool]:
    """The same function, in which ``requests.get`` returns ``body``: SGLang fetches and checks in one."""
    inner: Any = inspect.unwrap(function)
    response = types.SimpleNamespace(status_code=200, text="", json=lambda: dict(body))
    names = {**inner.__globals__, "requests": types.SimpleNamespace(get=lambda *args, **kwargs: response)}
    return types.FunctionType(inner.__code__, names, inner.__name__, inner.__defaults__, inner.__closure__)
