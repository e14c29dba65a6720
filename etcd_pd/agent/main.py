"""The agent as a process: waits for etcd, serves, ends cleanly on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time

from ..config import AgentSettings, describe
from ..errors import StoreUnavailable
from ..store.etcd import EtcdStore
from ..store.tls import trouble
from ..telemetry.metrics import serve
from .agent import Agent
from .families import families

log = logging.getLogger(__name__)

#: After how many new objects the collector looks at the young ones, and after how many such looks at the older ones.
GC_THRESHOLDS = (50_000, 20, 50)

#: How often a starting agent says that it still waits for etcd, seconds.
PROGRESS_SECONDS = 5.0


def run(settings: AgentSettings) -> int:
    """Run an agent until SIGTERM or SIGINT; its exit status.

    Raises:
        ConfigError: the socket cannot be used.
        StoreError: etcd did not answer in time, or refuses this agent.
    """
    # Rooms come and go by reference counting alone. With its usual thresholds the collector would look at each of them
    # several times, for a fifth of this process's time.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        import uvloop  # faster where it is installed; asyncio's own loop does as well
    except ImportError:
        return asyncio.run(_run(settings))
    return uvloop.run(_run(settings))


async def _run(settings: AgentSettings) -> int:
    log.info("agent starting %s", " ".join(f"{name}={value}" for name, value in describe(settings).items()))
    if settings.etcd.shows_secrets:
        log.warning("etcd's password or token goes over the network unencrypted: use https:// endpoints")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with EtcdStore(settings.etcd) as store:
        agent = Agent(settings, store)
        address = settings.metrics_listen
        metrics = await serve(address, lambda: families(agent)) if address else None
        serving = asyncio.create_task(agent.run(stop))
        reached = asyncio.create_task(_until_synced(settings, store, agent))
        idle = asyncio.create_task(_stop_when_idle(settings, agent, stop))
        try:
            done, _ = await asyncio.wait([serving, reached], return_when=asyncio.FIRST_COMPLETED)
            if serving not in done:
                reached.result()
            await serving
        finally:
            for task in (reached, idle):
                task.cancel()
            stop.set()
            await asyncio.gather(serving, reached, idle, return_exceptions=True)
            if metrics:
                metrics.close()
    log.info("agent ended")
    return 0


async def _until_synced(settings: AgentSettings, store: EtcdStore, agent: Agent) -> None:
    """Wait for the first sync, say so meanwhile, give up in the end.

    Raises:
        StoreUnavailable: no endpoint answered before the start-up timeout.
    """
    started = time.monotonic()
    endpoints = ",".join(settings.etcd.endpoints)
    while True:
        try:
            left = started + settings.startup_timeout_seconds - time.monotonic()
            await asyncio.wait_for(agent.watcher.synced.wait(), min(PROGRESS_SECONDS, max(left, 0.0)))
            return
        except asyncio.TimeoutError:
            waited = time.monotonic() - started
            log.warning("waiting for etcd endpoints=%s waited=%.0fs: %s", endpoints, waited, agent.watcher.trouble)
            if waited >= settings.startup_timeout_seconds:
                why = await asyncio.to_thread(trouble, settings.etcd) or agent.watcher.trouble
                message = f"no answer from {endpoints} in {waited:.0f} s: {why}"
                raise StoreUnavailable("start", message) from None


async def _stop_when_idle(settings: AgentSettings, agent: Agent, stop: asyncio.Event) -> None:
    if not settings.idle_exit_seconds:
        return
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < settings.idle_exit_seconds:
        await asyncio.sleep(0.2)
        if agent.server.connections or agent.ranks.lingering:
            idle_since = time.monotonic()
    log.info("no engine for %.0f s", settings.idle_exit_seconds)
    stop.set()
