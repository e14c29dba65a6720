"""The gateway as a process: recovers, serves, ends cleanly on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl

from aiohttp import web

from ...client import aio
from ...config import describe, split_address
from ...errors import ConfigError
from ...telemetry.http_server import make_runner
from .health import EngineWatch
from .ranks import Ranks
from .rooms import Rooms
from .routes import make_app
from .settings import GatewaySettings

log = logging.getLogger(__name__)


def run(settings: GatewaySettings) -> int:
    """Run a gateway until SIGTERM or SIGINT; its exit status.

    Raises:
        ConfigError: it cannot listen, or the certificate cannot be used.
    """
    return asyncio.run(_run(settings))


async def _run(settings: GatewaySettings) -> int:
    log.info("gateway starting %s", " ".join(f"{name}={value}" for name, value in describe(settings).items()))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tls = _tls(settings)
    async with aio.connect(settings.socket_path) as reader:
        ranks = Ranks(settings, reader)
        rooms = Rooms(settings, ranks, reader)
        engine = EngineWatch(settings, ranks)
        runner = make_runner(make_app(ranks, rooms, engine, settings.token, open_reads=settings.open_reads))
        await runner.setup()
        # begun before the first request can come, but not waited for: the engine must find the port taken at once
        work = [asyncio.create_task(_recover(ranks, engine)), asyncio.create_task(engine.run())]
        try:
            await _listen(settings, runner, tls)
            await _until(stop, work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await runner.cleanup()
            await ranks.leave()
    log.info("gateway ended")
    return 0


async def _recover(ranks: Ranks, engine: EngineWatch) -> None:
    await ranks.recover()
    if ranks:
        engine.registered()


async def _until(stop: asyncio.Event, work: list[asyncio.Task[None]]) -> None:
    stopped = asyncio.create_task(stop.wait())
    waiting: set[asyncio.Task[object]] = {stopped, *work}
    while stopped in waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # a part that failed did so by a bug: let it be seen


async def _listen(settings: GatewaySettings, runner: web.AppRunner, tls: ssl.SSLContext | None) -> None:
    host, port = split_address("listen", settings.listen)
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError as exc:
        raise ConfigError("listen", f"cannot listen on {settings.listen}: {exc.strerror}") from exc
    log.info("listening on %s for instance=%s", settings.listen, settings.instance)


def _tls(settings: GatewaySettings) -> ssl.SSLContext | None:
    if not settings.tls_cert_file:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError("gateway_cert_file", f"cannot use it: {exc}") from exc
    return context
