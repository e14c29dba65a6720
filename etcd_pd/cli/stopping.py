"""How commands that go on until somebody ends them are ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

#: Exit status of what a person interrupted, as in a shell.
INTERRUPTED = 130


def run_until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run until it returns, or until Ctrl-C, SIGTERM or a closed terminal, which are a normal end."""

    async def run() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await task

    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(run())
