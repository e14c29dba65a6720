"""Coroutines that wait for the same answer."""

from __future__ import annotations

import asyncio
from typing import Any


class Waiters:
    """Futures by what they wait for; several may wait for the same."""

    def __init__(self) -> None:
        self._futures: dict[Any, list[asyncio.Future[Any]]] = {}
        self._error: Exception | None = None

    def __len__(self) -> int:
        return sum(map(len, self._futures.values()))

    async def wait(self, key: Any) -> Any:
        if self._error is not None:
            raise self._error
        future = asyncio.get_running_loop().create_future()
        self._futures.setdefault(key, []).append(future)
        try:
            return await future
        finally:
            self._forget(key, future)

    def _forget(self, key: Any, future: asyncio.Future[Any]) -> None:
        futures = self._futures.get(key, [])
        if future in futures:  # cancelled: nobody has answered it
            futures.remove(future)
            if not futures:
                del self._futures[key]

    def answer(self, key: Any, result: Any) -> None:
        for future in self._futures.pop(key, ()):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def fail_all(self, error: Exception) -> None:
        """Whoever waits now or later gets this error."""
        self._error = error
        for key in list(self._futures):
            self.answer(key, error)
