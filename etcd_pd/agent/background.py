"""What goes on beside everything else until etcd has taken it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine

from ..errors import StoreError

log = logging.getLogger(__name__)

#: The first pause after a write that failed, and the longest, seconds.
PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: How long what was begun may go on when the agent ends, seconds.
CLOSE_SECONDS = 2.0


class Background:
    """Runs writes that nobody waits for.

    Attributes:
        tasks: those that go on.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Begin something."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def until_done(self, act: Callable[[], Awaitable[object]]) -> None:
        """Do it again until etcd has taken it, with pauses that grow."""
        pause = PAUSE
        while True:
            try:
                await act()
                return
            except StoreError as exc:
                log.debug("again in a moment: %s", exc)
                await asyncio.sleep(random.uniform(pause, 2 * pause))
                pause = min(2 * pause, LONGEST_PAUSE)

    async def close(self) -> bool:
        """Wait a bounded time for what goes on, and cut the rest off; whether all of it was done."""
        end = time.monotonic() + CLOSE_SECONDS
        while self.tasks and (left := end - time.monotonic()) > 0:  # what is begun meanwhile as well
            await asyncio.wait(self.tasks, timeout=left)
        cut = list(self.tasks)
        for task in cut:
            task.cancel()
        return not cut
