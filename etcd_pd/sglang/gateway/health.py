"""Is the engine alive? Its ranks stay in etcd while its own /health answers."""

from __future__ import annotations

import asyncio
import enum
import logging
import time

import aiohttp

from .ranks import Ranks
from .settings import GatewaySettings

log = logging.getLogger(__name__)

#: How long the engine may take to answer /health.
ANSWER_SECONDS = 3.0


class EngineState(enum.Enum):
    """What is known of the engine."""

    ABSENT = "no rank is registered"
    STARTING = "its ranks are registered, and it has not answered yet"
    UP = "it answers"
    DOWN = "it does not answer any more"


class EngineWatch:
    """Asks the engine's /health, and takes its ranks out of etcd when it is dead.

    Args:
        settings: the gateway's.
        ranks: whose life it decides on.
    """

    def __init__(self, settings: GatewaySettings, ranks: Ranks) -> None:
        self._settings, self._ranks = settings, ranks
        self._failures = 0
        self._since = time.monotonic()
        self.state = EngineState.ABSENT

    async def run(self) -> None:
        """Watch until cancelled."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await asyncio.sleep(self._settings.engine_health_interval_seconds)
                await self._step(await self._answer(session))

    def registered(self) -> None:
        """A rank was registered: what was known of the engine before may be another start's."""
        if self.state in (EngineState.ABSENT, EngineState.DOWN):
            self._enter(EngineState.STARTING)

    async def _answer(self, session: aiohttp.ClientSession) -> bool | None:
        """Whether the engine is healthy; None where nothing listens there."""
        url = self._settings.engine_url
        port = self._ranks.http_port
        if not url and port is None:
            return True  # nobody to ask: the ranks stay for as long as this gateway does
        try:
            async with session.get(f"{url or f'http://{self._settings.engine_host}:{port}'}/health") as response:
                return response.status == 200
        except aiohttp.ClientConnectorError:
            return None
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    async def _step(self, healthy: bool | None) -> None:
        if not self._ranks:
            return
        if healthy:
            if self.state is EngineState.DOWN:
                await self._ranks.rejoin()
            self._enter(EngineState.UP)
            return
        self._failures += 1
        if self.state is EngineState.UP:
            # one that served and does not even listen is gone; one that is slow may be busy
            if healthy is None or self._failures >= self._settings.engine_health_failures:
                await self._give_up()
        elif self.state in (EngineState.ABSENT, EngineState.STARTING):
            late = time.monotonic() - self._since > self._settings.engine_startup_seconds
            dead = self._failures >= self._settings.engine_health_failures and not await self._ranks.alive()
            if late or dead:
                await self._give_up()

    async def _give_up(self) -> None:
        log.error("engine is dead instance=%s: withdrawing its ranks", self._settings.instance)
        await self._ranks.withdraw()
        self._enter(EngineState.DOWN)

    def _enter(self, state: EngineState) -> None:
        self._failures = 0
        if state is not self.state:
            log.info("engine instance=%s: %s", self._settings.instance, state.value)
            self.state, self._since = state, time.monotonic()
