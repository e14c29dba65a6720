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


class Handle:
    """A callback that is to run, without what asyncio keeps for those who debug a loop."""

    __slots__ = ("args", "callback", "context", "gone")

    def __init__(self, callback: Any, args: tuple[Any, ...], context: Context | None) -> None:
        self.callback, self.args = callback, args
        self.context = copy_context() if context is None else context
        self.gone = False

    def cancel(self) -> None:
        """Run it no more."""
        self.gone, self.callback, self.args = True, None, ()

    def cancelled(self) -> bool:
        """Whether it runs no more."""
        return self.gone


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes where nothing is left to do, up to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1_000.0
        # what is due at the same time happens in the order in which it was asked for
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()
        self._readers: dict[Any, tuple[Callable[[], None], Context]] = {}
        self._writers: dict[Any, Callable[[], None]] = {}

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        """As every loop's."""
        handle = Handle(callback, args, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Handle:
        """As every loop's, but that no two tie."""
        handle = Handle(callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Handle:
        """As every loop's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

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

    def pass_idly(self, seconds: float) -> bool:
        """Let that time pass at once, as a sleep would, if nothing is to be done until then; whether it did."""
        self._drop_cancelled()
        until = self._now + seconds
        if self._ready or (self._timers and self._timers[0][0] <= until):  # type: ignore[attr-defined]
            return False
        self._now = until
        return True

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        """All until somebody stops the loop: a call of this for each timer would cost as much as what they do."""
        timers, ready = self._timers, self._ready  # type: ignore[attr-defined]
        while not self._stopping:  # type: ignore[attr-defined]
            if not ready:
                self._drop_cancelled()
                if not timers:
                    raise RuntimeError("nothing will ever happen again, and somebody waits for it")
                self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                ready.append(heapq.heappop(timers)[2])
            for _ in range(len(ready)):
                self._run_or_defer(ready.popleft())

    def _drop_cancelled(self) -> None:
        while self._timers and self._timers[0][2].gone:
            heapq.heappop(self._timers)

    def _run_or_defer(self, handle: Handle) -> None:
        """Run a callback, or have it wait until its process is woken."""
        if handle.gone:
            return
        process = handle.context.get(PROCESS)
        if process is not None and process.until > self._now:
            self.call_at(process.until, self._run_or_defer, handle, context=AWAKE)
            return
        try:
            handle.context.run(handle.callback, *handle.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.call_exception_handler({"message": f"{handle.callback} failed", "exception": exc})


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
