"""Registers and resolves rooms for engines that ask over HTTP. Nothing here outlives the process or needs to."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial

from ...client import aio
from ...errors import ConfigError, ResolveError, RoomConflict
from .ranks import ANSWER_SECONDS, Ranks
from .settings import GatewaySettings

log = logging.getLogger(__name__)

#: How long an answer to a registration waits until a query would see it, too.
READ_BACK_SECONDS = 1.0
#: How long a room is remembered that was asked for and is not there, seconds: decode asks again every few milliseconds.
ASKED_SECONDS = 5.0
#: Most of those; beyond, the one that was asked for longest ago is forgotten first.
MOST_ASKED = 10_000
#: Pause between attempts to take a room over from its owner, whose release takes a moment.
TAKE_OVER_SECONDS = 0.02


class Rooms:
    """The rooms of one instance.

    Args:
        settings: the gateway's.
        ranks: who registers.
        reader: a client that follows the instance.
    """

    def __init__(self, settings: GatewaySettings, ranks: Ranks, reader: aio.AsyncClient) -> None:
        self._settings, self._ranks, self._reader = settings, ranks, reader
        self._forget: deque[tuple[float, Callable[[], None]]] = deque()
        self._asked: dict[int, float] = {}  # rooms that are not there, by when they were asked for last, that first
        self._waiting: Counter[int] = Counter()  # queries that wait for a room

    async def register(self, room: int, dp_rank: int) -> None:
        """A rank took a room; returns when queries see it.

        Raises:
            LookupError: no such rank is announced here.
            RoomConflict: another rank owns the room.
            RegistrationError, asyncio.TimeoutError: etcd did not take it.
        """
        self.sweep()
        await asyncio.wait_for(self._register(room, dp_rank), ANSWER_SECONDS)
        decode, instance = self._reader.decode, self._settings.instance
        try:
            await asyncio.wait_for(decode.resolve(instance, room), READ_BACK_SECONDS)
        except (asyncio.TimeoutError, ResolveError) as exc:
            log.debug("registered room=%d is not visible yet: %s", room, exc)
        self._later(lambda: decode.done(instance, room))

    async def query(self, rooms: Iterable[int], wait: float = 0.0) -> dict[int, int]:
        """The DP ranks of those rooms that are registered, at once or after up to ``wait`` seconds."""
        self.sweep()
        rooms = list(dict.fromkeys(rooms))
        self._waiting.update(rooms)
        try:
            fresh = [room for room in rooms if self._want(room)]
            if fresh:
                self._asked |= dict.fromkeys(fresh, asyncio.get_running_loop().time())
                # the agent answers in order: after this, it has looked at every room
                await self._reader.decode.follow(self._settings.instance)
            if wait:
                await self._until_known(rooms, min(wait, self._settings.query_wait_max_seconds))
            found = {room: dp_rank for room in rooms if (dp_rank := self._known(room)) is not None}
        finally:
            self._waiting -= Counter(rooms)
        self._remember(rooms, found)
        return found

    def _remember(self, rooms: list[int], found: dict[int, int]) -> None:
        """Keep what was asked for and is there for as long as it may be, and what is not for a moment."""
        now = asyncio.get_running_loop().time()
        for room in rooms:
            was_asked = self._asked.pop(room, None) is not None
            if room not in found:
                self._asked[room] = now
            elif was_asked:
                self._later(partial(self._reader.decode.done, self._settings.instance, room))
        self._forget_asked(now)

    def _forget_asked(self, now: float) -> None:
        """Forget rooms that are not there and that nobody asks for any more."""
        over: list[int] = []
        for room, at in self._asked.items():
            if at + ASKED_SECONDS > now and len(self._asked) - len(over) <= MOST_ASKED:
                break
            if not self._waiting[room]:
                over.append(room)
        for room in over:
            del self._asked[room]
            self._reader.decode.done(self._settings.instance, room)

    def sweep(self) -> None:
        """Forget rooms that are older than the engine's bootstrap timeout: SGLang never says that one ended."""
        now = asyncio.get_running_loop().time()
        while self._forget and self._forget[0][0] <= now:
            self._forget.popleft()[1]()
        self._forget_asked(now)

    async def _register(self, room: int, dp_rank: int) -> None:
        while True:
            prefill = self._ranks.prefill(dp_rank)
            if prefill is None:
                raise LookupError(f"no rank of dp_rank {dp_rank} is registered")
            try:
                registered = await prefill.register(room)
            except RoomConflict as conflict:
                if not self._settings.last_writer_wins:
                    raise
                self._release_from(conflict.holder, room)
                await asyncio.sleep(TAKE_OVER_SECONDS)
            else:
                self._forget_answers_before(room, registered.token)
                self._later(partial(prefill.release, room))
                return

    def _forget_answers_before(self, room: int, revision: int) -> None:
        """Forget an earlier owner's answer, or its end. One that is not there yet, or came first, is this owner's."""
        decode, instance = self._reader.sync.decode, self._settings.instance
        try:
            found = decode.peek(instance, room)
            if found is None or found.revision >= revision:
                return
        except ResolveError:
            pass
        except ConfigError:
            return
        decode.done(instance, room)

    def _release_from(self, holder: str, room: int) -> None:
        dp_rank = holder.rpartition("/")[2].partition("@")[0]
        owner = self._ranks.prefill(int(dp_rank)) if dp_rank.isdecimal() else None
        if owner:
            owner.release(room)

    def _want(self, room: int) -> bool:
        """Want a room; True where it was not wanted before."""
        decode, instance = self._reader.sync.decode, self._settings.instance
        try:
            decode.peek(instance, room)
            return False
        except ResolveError:  # an earlier wait's end; the room may have come back since
            decode.done(instance, room)
        except ConfigError:
            pass
        decode.want(instance, room, timeout=self._settings.bootstrap_timeout_seconds)
        return True

    def _known(self, room: int) -> int | None:
        try:
            found = self._reader.sync.decode.peek(self._settings.instance, room)
        except (ResolveError, ConfigError):
            return None
        return found.dp_rank if found else None

    async def _until_known(self, rooms: list[int], seconds: float) -> None:
        waits = [
            asyncio.ensure_future(self._reader.decode.resolve(self._settings.instance, room))
            for room in rooms
            if self._known(room) is None
        ]
        if waits:
            _, late = await asyncio.wait(waits, timeout=seconds)
            for wait in late:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _later(self, act: Callable[[], None]) -> None:
        at = asyncio.get_running_loop().time() + self._settings.bootstrap_timeout_seconds
        self._forget.append((at, act))
