"""The client for asyncio hosts: the same calls, awaited instead of polled.

One task reads the socket and answers whoever waits; nothing blocks the loop. Everything that
:class:`etcd_pd.Client` offers is still there as ``client.sync``, except that only this module calls its poll().
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from .. import client as _client
from ..errors import AgentUnavailable, ProtocolError, RegistrationError, ResolveError
from ..wire.values import Assignment, PrefillInstance, Rank, Topology
from . import Announced, Client, Described, Drained, Ended, RankEnded, Refused, Registered, Rejected, Resolved
from .waiters import Waiters

log = logging.getLogger(__name__)

#: How often deadlines and a lost agent are looked at while the socket is silent, seconds.
TICK_SECONDS = 0.05


def connect(socket_path: str | None = None, **options: Any) -> AsyncClient:
    """As :func:`etcd_pd.connect`; use the result as an async context manager.

    Raises:
        ConfigError: an argument breaks a rule.
    """
    return AsyncClient(_client.connect(socket_path, **options))


class AsyncClient:
    """An asyncio host's connection to its agent.

    Attributes:
        sync: the client underneath.
        prefill: the prefill side.
        decode: the decode side.
    """

    def __init__(self, sync: Client) -> None:
        self.sync = sync
        self.prefill = AsyncPrefill(sync)
        self.decode = AsyncDecode(sync)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncClient:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; whoever still waits gets AgentUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.sync.close()
        self._fail_all(AgentUnavailable("the client was closed"))

    async def _run(self) -> None:
        try:
            while True:
                await self._wait_for_events()
                self._answer()
        except AgentUnavailable as exc:  # another protocol version: it will not get better
            self._fail_all(exc)

    def _answer(self) -> None:
        try:
            for event in self.sync.prefill.poll():
                self.prefill.on_event(event)
            for ended in self.sync.decode.poll():
                self.decode.on_event(ended)
        except ProtocolError as exc:  # the next connection says everything again, so nobody is left waiting
            log.warning("reconnecting to the agent: %s", exc)

    async def _wait_for_events(self) -> None:
        """Wait until the socket is readable, or for a tick."""
        loop = asyncio.get_running_loop()
        descriptor = self.sync.fileno()
        if descriptor < 0:
            await asyncio.sleep(TICK_SECONDS)
            return
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        # not wait_for(): with Python 3.11 it swallows a cancellation that comes together with a packet
        tick = loop.call_later(TICK_SECONDS, readable.set)
        try:
            await readable.wait()
        finally:
            tick.cancel()
            loop.remove_reader(descriptor)

    def _fail_all(self, error: AgentUnavailable) -> None:
        self.prefill.fail_all(error)
        self.decode.fail_all(error)


class AsyncPrefill:
    """The prefill side. Made by :class:`AsyncClient`.

    Attributes:
        ended: RankEnded events that nobody has looked at yet, oldest first: the rooms of those epochs are dead.
    """

    def __init__(self, sync: Client) -> None:
        self._sync = sync.prefill
        self._waiters = Waiters()
        self.ended: asyncio.Queue[RankEnded] = asyncio.Queue()

    async def announce(
        self,
        instance: str,
        *,
        rank: Rank,
        topology: Topology,
        launch_id: str,
        addresses: Sequence[str],
        ip: str,
        port: int,
        policy: str = "round_robin",
        fingerprint: str = "",
        extra: Mapping[str, Any] | None = None,
        linger: float = 0.0,
    ) -> Announced:
        """As :meth:`etcd_pd.Prefill.announce`, until the rank is in etcd.

        Raises:
            InstanceConflict: another live start owns the instance's name.
            ConfigError: an argument breaks a rule.
        """
        self._sync.announce(
            instance,
            rank=rank,
            topology=topology,
            launch_id=launch_id,
            addresses=addresses,
            ip=ip,
            port=port,
            policy=policy,
            fingerprint=fingerprint,
            extra=extra,
            linger=linger,
        )
        announced: Announced = await self._waiters.wait(Announced)
        return announced

    async def register(self, room: int) -> Registered:
        """As :meth:`etcd_pd.Prefill.register`, until the room is in etcd.

        Raises:
            RegistrationError: it was rejected: RoomConflict, RegistrationTimeout, RankLost, RankDraining.
            NotAnnounced, AgentBusy, ConfigError: nothing was asked for.
        """
        self._sync.register(room)
        registered: Registered = await self._waiters.wait(room)
        return registered

    def release(self, room: int) -> None:
        """As :meth:`etcd_pd.Prefill.release`; who still awaits its registration gets RegistrationError."""
        self._sync.release(room)
        self._waiters.answer(room, RegistrationError(room, "it was released before it was registered"))

    def fail(self, room: int, reason: str) -> None:
        """As :meth:`etcd_pd.Prefill.fail`; who still awaits its registration gets RegistrationError."""
        self._sync.fail(room, reason)
        self._waiters.answer(room, RegistrationError(room, f"it was failed before it was registered: {reason}"))

    async def drain(self) -> None:
        """As :meth:`etcd_pd.Prefill.drain`, until the rank's last room has ended."""
        self._sync.drain()
        await self._waiters.wait(Drained)

    def on_event(self, event: _client.PrefillEvent) -> None:
        """Answer whoever waits for it."""
        if isinstance(event, Registered):
            self._waiters.answer(event.room, event)
        elif isinstance(event, Rejected):
            self._waiters.answer(event.room, event.error)
        elif isinstance(event, Refused):
            self._waiters.answer(Announced, event.error)
        elif isinstance(event, RankEnded):
            self.ended.put_nowait(event)
        else:
            self._waiters.answer(type(event), event)

    def fail_all(self, error: Exception) -> None:
        """Nobody will be answered any more."""
        self._waiters.fail_all(error)


class AsyncDecode:
    """The decode side. Made by :class:`AsyncClient`."""

    def __init__(self, sync: Client) -> None:
        self._sync = sync.decode
        self._resolved, self._ended, self._described = Waiters(), Waiters(), Waiters()

    async def follow(self, instance: str) -> PrefillInstance | None:
        """As :meth:`etcd_pd.Decode.follow`, until the agent has answered, which it does at once."""
        self._sync.follow(instance)
        described: Described = await self._described.wait(instance)
        return described.instance

    async def changed(self, instance: str) -> PrefillInstance | None:
        """Wait for the next change of a followed instance."""
        described: Described = await self._described.wait(instance)
        return described.instance

    async def resolve(
        self, instance: str, room: int, *, timeout: float = 300.0, dp_rank: int | None = None
    ) -> Assignment:
        """Want the room and wait for its assignment; say done() when its KV cache was fetched.

        Args:
            instance: the prefill instance's id, or the bootstrap ``host:port`` that the request carries.
            room: the bootstrap room.
            timeout: seconds until it ends as RoomTimeout.
            dp_rank: the prefill rank where the request itself names it.

        Raises:
            RoomFailed, PrefillLost, RoomTimeout, InstanceUnknown: it will not come.
            AgentBusy, ConfigError: nothing was asked for.
        """
        self._sync.want(instance, room, timeout=timeout, dp_rank=dp_rank)
        known = self._sync.peek(instance, room)
        if known is not None:
            return known
        assignment: Assignment = await self._resolved.wait((instance, room))
        return assignment

    async def lost(self, instance: str, room: int) -> ResolveError:
        """Wait for a resolved room to be lost, or done, and return why."""
        try:
            self._sync.peek(instance, room)  # else it has ended already
            await self._ended.wait((instance, room))
        except ResolveError as error:
            return error
        raise AssertionError("unreachable: a wait ends with an error only")

    def done(self, instance: str, room: int) -> None:
        """As :meth:`etcd_pd.Decode.done`; who still awaits the room gets ResolveError."""
        self._sync.done(instance, room)
        for waiters in (self._resolved, self._ended):
            waiters.answer((instance, room), ResolveError(instance, room, "it is done with"))

    def on_event(self, event: _client.DecodeEvent) -> None:
        """Answer whoever waits for it."""
        if isinstance(event, Resolved):
            self._resolved.answer((event.instance, event.assignment.room), event.assignment)
        elif isinstance(event, Ended):
            key = (event.error.instance, event.error.room)
            self._resolved.answer(key, event.error)
            self._ended.answer(key, event.error)
        else:
            self._described.answer(event.name, event)

    def fail_all(self, error: Exception) -> None:
        """Nobody will be answered any more."""
        for waiters in (self._resolved, self._ended, self._described):
            waiters.fail_all(error)
