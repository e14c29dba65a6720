"""The agent's one watch: follows the cell, resumes, relists, and says plainly when it cannot."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

from ..core.records import WatchResponse
from ..core.watch import Changes, Relist, Reopen, Snapshot, WatchMachine, WatchState, relist_spread
from ..errors import StoreError
from ..store.base import Store, Watch
from ..store.deadline import within
from .successor import Successor, open_successor

log = logging.getLogger(__name__)

#: Pauses between attempts grow from the first to the last of these, seconds, each drawn at random below it.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5


class Watcher:
    """Runs a :class:`~etcd_pd.core.watch.WatchMachine` against a store.

    Args:
        store: what to watch.
        prefix: the cell's prefix.
        end: where given, only keys before it are followed.
        silence: seconds without a word from etcd after which another endpoint is tried.
        on_snapshot: called with the whole content, first and after every gap.
        on_changes: called with complete revisions, in order.
        on_state: called whenever the state changes.

    Attributes:
        synced: set once the view was whole for the first time.
        resyncs: lists so far.
        trouble: what went wrong last.
        peers: how many agents watch the cell, this one included, as far as is known.
        causes: how often the view became stale, by why.
    """

    def __init__(
        self,
        store: Store,
        prefix: bytes,
        silence: float,
        *,
        end: bytes = b"",
        on_snapshot: Callable[[Snapshot], None],
        on_changes: Callable[[Changes], None],
        on_state: Callable[[WatchState], None],
    ) -> None:
        self._store, self._prefix, self._end, self._silence = store, prefix, end, silence
        self._on_snapshot, self._on_changes, self._on_state = on_snapshot, on_changes, on_state
        self._machine = WatchMachine()
        self._successor: Successor | None = None
        self._reported = self._machine.state
        self._pause = FIRST_PAUSE
        self._answered_at = time.monotonic()
        self.synced = asyncio.Event()
        self.resyncs = 0
        self.trouble = ""
        self.peers = self._listed_keys = 0
        self.causes: Counter[str] = Counter()
        self._stale_since, self._noted = self._answered_at, 0

    def __repr__(self) -> str:
        return f"<Watcher {self.state.value} revision={self._machine.revision} silent={self.silent_seconds:.1f}s>"

    @property
    def state(self) -> WatchState:
        """What a reader of the view may assume."""
        synced = self._machine.state is WatchState.SYNCED
        return WatchState.STALE if synced and self._overslept else self._machine.state

    @property
    def cluster_id(self) -> int:
        """Of the etcd that was listed, 0 before."""
        return self._machine.cluster_id

    @property
    def silent_seconds(self) -> float:
        """How long etcd has said nothing."""
        return time.monotonic() - self._answered_at

    @property
    def stale_seconds(self) -> float:
        """How long the view was not to be relied on, 0 while it is."""
        return 0.0 if self.state is WatchState.SYNCED else time.monotonic() - self._stale_since

    @property
    def lag(self) -> int | None:
        """Revisions that this agent has written, and not seen yet; None where it does not watch what it writes."""
        return None if self._end else max(0, self._noted - self._machine.revision)

    @property
    def _overslept(self) -> bool:
        """Whether this process was stopped: else a silence as long as this would have ended the watch."""
        return self.silent_seconds > 2 * self._silence

    def note_revision(self, revision: int) -> None:
        """A write of this agent happened at this revision, which a watch over some of the keys may never show.

        A watch over all of them will; until it has, a member that lags would be taken for a restored one.
        """
        self._noted = max(self._noted, revision)
        if self._end:
            self._machine.note_revision(revision)

    async def run(self) -> None:
        """Follow the cell until cancelled."""
        try:
            while True:
                try:
                    await self._follow()
                except StoreError as exc:
                    self._machine.disconnected()
                    self.trouble = str(exc)
                    self._report(type(exc).__name__, self.trouble)
                    await asyncio.sleep(random.uniform(self._pause / 2, self._pause))
                    self._pause = min(self._pause * 2, LONGEST_PAUSE)
        finally:
            self._machine.close()

    async def _follow(self) -> None:
        """One list where needed, then one stream until it ends or must be dropped."""
        step = self._machine.next()
        if isinstance(step, Relist):
            spread = relist_spread(self.peers, self._listed_keys)
            if spread:
                await asyncio.sleep(random.uniform(0.0, spread))
            found = self._machine.listed(await self._store.list(self._prefix, self._end))
            if isinstance(found, Snapshot):
                self.resyncs, self._listed_keys = self.resyncs + 1, len(found.kvs)
                self._on_snapshot(found)
            else:
                self._report(*found)
            return
        self._answered_at = time.monotonic()  # before: this process may be stopped while the watch is opened
        watch = await self._store.watch(self._prefix, step.start_revision, self._end)
        responses = aiter(watch)
        try:
            while not await self._read(watch, responses):
                watch, responses = self._take_over()
        finally:
            if self._successor:
                await self._successor.watch.close()
                self._successor = None

    async def _read(self, watch: Watch, responses: AsyncIterator[WatchResponse]) -> bool:
        """Read a stream to its end; whether another one must be begun, and no successor is there."""
        minder = asyncio.create_task(self._mind(watch))
        try:
            await self._read_all(watch, responses)
        except StoreError:
            if not self._successor:
                raise
            return self._wake_up()
        finally:
            minder.cancel()
            await asyncio.wait([minder])
            await watch.close()
        return True

    def _take_over(self) -> tuple[Watch, AsyncIterator[WatchResponse]]:
        """Go on with the successor."""
        assert self._successor
        (watch, responses, learnt), self._successor = self._successor, None
        self._answered_at = time.monotonic()
        changes = self._machine.take_over(learnt)
        if changes:
            self._on_changes(changes)
        log.info("watch runs on another connection now revision=%d", self._machine.revision)
        return watch, responses

    def _wake_up(self) -> bool:
        """Whether this process was stopped: then what has come meanwhile is old, to be got again from where etcd is."""
        if not self._overslept:
            return False
        self._machine.disconnected()
        self._report("Overslept", f"this process was stopped for {self.silent_seconds:.1f} s")
        return True

    async def _read_all(self, watch: Watch, responses: AsyncIterator[WatchResponse]) -> None:
        async for response in responses:
            if self._wake_up():
                return
            self._answered_at = time.monotonic()
            outcome = self._machine.received(response)
            if isinstance(outcome, Reopen):
                self._report(*outcome)
                return
            self._pause = FIRST_PAUSE
            if isinstance(outcome, Changes):
                self._on_changes(outcome)
            if response.created and self._machine.state is not WatchState.SYNCED:
                watch.request_progress()  # answered once the gap is closed
            if self._machine.state is not self._reported:
                self._report("", "")

    async def _mind(self, watch: Watch) -> None:
        """A frozen server ends no stream: ask for signs of life, and end the stream when none comes."""
        while True:
            await asyncio.sleep(self._silence / 3)
            if self.silent_seconds >= self._silence:
                watch.give_up(f"etcd said nothing for {self.silent_seconds:.1f} s")
                return
            if watch.was_left and self.state is WatchState.SYNCED and await self._succeed():
                await watch.close()
                return
            watch.request_progress()

    async def _succeed(self) -> bool:
        """Prepare the watch that goes on on the connection in use now; the present one is read meanwhile."""
        opening = open_successor(self._store, self._prefix, self._end, self._machine.successor())
        try:
            self._successor = await within(opening, self._silence / 3)
        except (StoreError, asyncio.TimeoutError) as exc:
            log.debug("no watch on the other connection yet: %s", exc)
        return self._successor is not None

    def _report(self, cause: str, reason: str) -> None:
        state = self._machine.state
        if state is self._reported:
            return
        self._reported = state
        if state is WatchState.SYNCED:
            log.info("watch synced revision=%d", self._machine.revision)
            self.synced.set()
        else:
            self.causes[cause] += 1
            self._stale_since = time.monotonic()
            log.warning("watch %s revision=%d: %s", state.value, self._machine.revision, reason)
        self._on_state(state)
