"""An asyncio event loop in virtual time: nothing waits, and the same program runs the same way every time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
import uuid
from asyncio import events
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Sleeper:
    """A process that may be stopped: until when none of its callbacks run."""

    until: float = 0.0


#: Whose callbacks those of a context are; None: of nobody who sleeps.
PROCESS: ContextVar[Sleeper | None] = ContextVar("PROCESS", default=None)
#: The context of what never sleeps.
AWAKE = Context()


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes where nothing is left to do, up to the next timer.

    Attributes:
        steps: callbacks that ran so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self._now = 1_000.0
        # what is due at the same time happens in the order in which it was asked for
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._readers: dict[Any, tuple[Callable[[], None], Context]] = {}
        self._writers: dict[Any, Callable[[], None]] = {}

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As every loop's, but that no two tie."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Call it whenever the (simulated) socket has something."""
        self._readers[fd] = (lambda: callback(*args)), copy_context()
        fd.attend()

    def remove_reader(self, fd: Any) -> bool:
        """Call nothing any more."""
        return self._readers.pop(fd, None) is not None

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Call it when the socket takes more."""
        self._writers[fd] = lambda: callback(*args)

    def remove_writer(self, fd: Any) -> bool:
        """Call nothing any more."""
        return self._writers.pop(fd, None) is not None

    def reader_of(self, source: Any) -> tuple[Callable[[], None], Context] | None:
        """Who reads a socket, and in which context."""
        return self._readers.get(source)

    def writer_of(self, source: Any) -> Callable[[], None] | None:
        """Who waits until a socket takes more."""
        return self._writers.get(source)

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        timers, ready = self._timers, self._ready  # type: ignore[attr-defined]
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise RuntimeError("nothing will ever happen again, and somebody waits for it")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        for _ in range(len(ready)):
            self._run_or_defer(ready.popleft())

    def _run_or_defer(self, handle: Any) -> None:
        """Run a callback, or have it wait until its process is woken."""
        if handle.cancelled():
            return
        process = handle._context.get(PROCESS)
        if process is not None and process.until > self._now:
            self.call_at(process.until, self._run_or_defer, handle, context=AWAKE)
            return
        self.steps += 1
        handle._run()


@contextmanager
def deterministic(seed: int) -> Iterator[VirtualLoop]:
    """A fresh loop; while this is entered its time is everybody's, and nothing is drawn but from the seed."""
    loop = VirtualLoop()
    draw = random.Random(seed)
    monotonic, uuid4, state = time.monotonic, uuid.uuid4, random.getstate()
    time.monotonic = loop.time
    uuid.uuid4 = lambda: uuid.UUID(int=draw.getrandbits(128), version=4)
    random.seed(seed)
    try:
        yield loop
    finally:
        time.monotonic, uuid.uuid4 = monotonic, uuid4
        random.setstate(state)
        loop.close()


def run(seed: int, main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """What ``main`` returns, run from a seed."""
    with deterministic(seed) as loop:
        errors: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        events.set_event_loop(loop)
        try:
            result = loop.run_until_complete(main(loop))
        finally:
            events.set_event_loop(None)
        if errors:
            raise AssertionError(f"nobody saw this error: {errors[0]}") from errors[0].get("exception")
        return result
