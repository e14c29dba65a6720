"""Run one instance until it is asked to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

import etcd_pd
from etcd_pd import Client, ConfigError
from etcd_pd.config import bracketed
from etcd_pd.telemetry.http_server import make_runner

from . import tiny, tracing
from .card import go_offline
from .dispatch import Dispatcher
from .front import Front
from .rank_pool import RankPool, StartFailed
from .requests import DECODE, PREFILL, Limits
from .settings import DecodeSettings, EngineSettings, PrefillSettings
from .text import Tokenizer

if TYPE_CHECKING:
    from .spans import Spans

_log = logging.getLogger(__name__)

#: Connections that the kernel queues while the front is busy.
_BACKLOG = 1024

Connect = Callable[[str], Client]
_Result = TypeVar("_Result")


def run_prefill(settings: PrefillSettings, connect: Connect = etcd_pd.connect) -> None:
    """Run a prefill instance until SIGTERM or SIGINT, then drain and stop it.

    Args:
        settings: the instance's.
        connect: opens the registry's client, given the agent's socket path; must be importable by its name.

    Raises:
        ConfigError: a setting does not fit this machine: a port in use, no such model, no such device.
        StartFailed: a rank could not start, or the instance lost its name to another one.
    """
    _run(PREFILL, settings, connect, settings.addresses)


def run_decode(settings: DecodeSettings, connect: Connect = etcd_pd.connect) -> None:
    """Run a decode instance until SIGTERM or SIGINT; see :func:`run_prefill`."""
    _run(DECODE, settings, connect, ())


def _run(role: str, settings: EngineSettings, connect: Connect, addresses: tuple[str, ...]) -> None:
    # first of all: an instance that cannot have its ports starts nothing. It listens when it can answer
    with ExitStack() as listeners:
        listener = listeners.enter_context(_bind(settings.host, settings.port, "port"))
        legs_listener = None
        if isinstance(settings, PrefillSettings):
            legs_listener = listeners.enter_context(_bind(settings.host, settings.bootstrap_port, "bootstrap_port"))
        go_offline()
        tokenizer = Tokenizer(settings.model_path or tiny.ensure())
        spans = tracing.start(role, settings.instance_id)
        try:
            asyncio.run(_serve(role, settings, connect, tokenizer, addresses, (listener, legs_listener), spans))
        finally:
            if spans:
                spans.close()


def _bind(host: str, port: int, field: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(field, f"cannot listen on {bracketed(host)}:{port}: {error.strerror}") from error
    return listener


async def _serve(
    role: str,
    settings: EngineSettings,
    connect: Connect,
    tokenizer: Tokenizer,
    addresses: tuple[str, ...],
    listeners: tuple[socket.socket, socket.socket | None],
    spans: Spans | None,
) -> None:
    stopped: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _stop, stopped, None)
    dispatcher = Dispatcher(role, settings.policy, settings.dp_size)
    pool = RankPool(settings, dispatcher, tokenizer.path, connect, lambda reason: _stop(stopped, reason))
    try:
        card = await _before(stopped, pool.start())
        if card is not None:
            size, policy = settings.dp_size, settings.policy
            limits = Limits(role, card.vocabulary, card.context, size, policy, addresses, card.name)
            front = Front(settings, card, tokenizer, dispatcher, pool, limits, spans)
            runners = [await _listen(front.application(), listeners[0], "port")]
            legs = web.Application()
            await pool.legs.start(legs)
            if listeners[1] is not None:
                runners.append(await _listen(legs, listeners[1], "bootstrap_port"))
            _log.info("%s ready instance=%s url=http://%s:%d", role, settings.instance_id, settings.host, settings.port)
            await stopped
            _log.info("%s stopping instance=%s", role, settings.instance_id)
            await pool.drain()
            await pool.legs.stop()  # its connections would be waited for
            for runner in runners:
                await runner.cleanup()
    finally:
        await pool.stop()
    failure = stopped.result()
    if failure is not None:
        raise StartFailed(failure)


async def _before(stopped: asyncio.Future[str | None], work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """The result of ``work``, None where the instance was asked to stop before it was done."""
    task = asyncio.create_task(work)
    either: list[asyncio.Future[Any]] = [task, stopped]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None
    return task.result()


async def _listen(application: web.Application, listener: socket.socket, field: str) -> web.AppRunner:
    logging.getLogger("aiohttp.server").addFilter(_is_no_foreign_protocol)
    runner = make_runner(application, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
    except OSError as error:
        await runner.cleanup()
        host, port = listener.getsockname()[:2]
        raise ConfigError(field, f"cannot listen on {bracketed(host)}:{port}: {error.strerror}") from error
    return runner


def _stop(stopped: asyncio.Future[str | None], reason: str | None) -> None:
    if not stopped.done():
        stopped.set_result(reason)


def _is_no_foreign_protocol(record: logging.LogRecord) -> bool:
    """Drop the traceback of a peer that speaks no HTTP/1: routers probe with HTTP/2, and get a 400."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, BadHttpMessage):
        _log.debug("not HTTP/1 error=%.200r", str(error))
        return False
    return True
