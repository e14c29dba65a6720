"""Calls to etcd: on the connection in use, with a token where one is needed, repeated where that is safe."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import tenacity

from ..config import EtcdSettings
from ..errors import StoreBusy, StoreError, StoreRejected, StoreUnavailable
from . import etcdrpc as rpc
from .base import StoreCounts
from .connections import Connection, Connections
from .names import Names
from .papers import Papers
from .refusals import TokenExpired, translate
from .stream import Stream

log = logging.getLogger(__name__)

#: A member that has lost its leader refuses calls and ends streams. Without it, such a member goes on answering
#: progress requests, and a watch that learns nothing more looks alive.
REQUIRE_LEADER = (("hasleader", "true"),)

#: Authenticating costs etcd a tenth of a second of CPU, so a refused watch is reason for it only now and then, seconds.
OLD_TOKEN_SECONDS = 10.0

Metadata = tuple[tuple[str, str], ...]


class Calls:
    """What all of etcd's services have in common.

    Args:
        settings: endpoints, certificates, user.
        names: where the endpoints' hosts are.

    Attributes:
        connections: the one in use, and those before it.
        counts: what happened so far.
    """

    def __init__(self, settings: EtcdSettings, names: Names | None = None) -> None:
        self._settings = settings
        self._papers = Papers(settings)
        self.names = names or Names()
        self.counts = StoreCounts()
        self.connections = Connections(settings, self.names, self._papers, self.counts)
        self._token = ""
        self._token_since = 0.0
        self._authenticating = asyncio.Lock()

    async def repeat(self, op: str, service: str, method: str, request: Any, timeout: float | None = None) -> Any:
        """A call that may be repeated: at every endpoint, with growing and jittered pauses.

        Raises:
            StoreError: as the last attempt had it.
        """
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            stop=tenacity.stop_after_attempt(len(self._settings.endpoints) + 1),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        ):
            with attempt:
                return await self.call(op, service, method, request, timeout)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def call(self, op: str, service: str, method: str, request: Any, timeout: float | None = None) -> Any:
        """A call. It is not repeated, but for where etcd did nothing for want of a valid token.

        Raises:
            StoreError: etcd did not do it, or nobody knows.
        """
        try:
            return await self.call_on(await self.connections.use(), op, service, method, request, timeout)
        except TokenExpired:
            try:
                return await self.call_on(await self.connections.use(), op, service, method, request, timeout)
            except TokenExpired as exc:
                raise StoreRejected(op, str(exc)) from exc

    async def call_on(
        self, connection: Connection, op: str, service: str, method: str, request: Any, timeout: float | None = None
    ) -> Any:
        """A call on a connection that may be another one than that in use.

        Raises:
            StoreError: etcd did not do it, or nobody knows.
        """
        metadata = await self._metadata(connection)
        return await self._send(op, connection, service, method, request, metadata, timeout)

    async def open(self, op: str, service: str, method: str, convert: Callable[[Any, str], Any]) -> Stream:
        """Open a stream; ``convert`` makes of an answer, and of the endpoint that gave it, what is received.

        Raises:
            StoreError: there is no connection, or no token.
        """
        connection = await self.connections.use()
        endpoint = connection.endpoint
        with connection:  # else it may be left, and closed, while a token is fetched
            metadata = await self._metadata(connection)
            return Stream(
                op,
                connection,
                getattr(connection.stub(service), method),
                metadata,
                lambda answer: convert(answer, endpoint),
                lambda where, error: self.note(op, where, error),
            )

    def note(self, op: str, connection: Connection, error: StoreError) -> None:
        """Count an error, and draw what follows for whoever calls next."""
        self.counts.errors[op, type(error).__name__] += 1
        refused = op == "watch" and isinstance(error, StoreRejected)
        if isinstance(error, TokenExpired) or (refused and self._token_is_old):
            if self._token:
                log.info("etcd does not take our token any more, asking for another: %s", error)
            self._token = ""
        elif isinstance(error, StoreUnavailable) and not isinstance(error, StoreBusy):
            self.connections.leave(connection, str(error))

    async def close(self) -> None:
        """Close all connections."""
        await self.connections.close()

    async def _send(
        self,
        op: str,
        connection: Connection,
        service: str,
        method: str,
        request: Any,
        metadata: Metadata,
        timeout: float | None = None,
    ) -> Any:
        with connection:
            call = getattr(connection.stub(service), method)
            try:
                answer = await call(
                    request, timeout=timeout or self._settings.request_timeout_seconds, metadata=metadata
                )
            except grpc.aio.AioRpcError as exc:
                error = translate(op, exc.code(), exc.details() or "", connection.endpoint)
                self.note(op, connection, error)
                raise error from exc
            except (asyncio.CancelledError, grpc.aio.UsageError) as exc:
                if _is_cancelled():
                    raise
                raise StoreUnavailable(op, f"the connection to {connection.endpoint} was closed") from exc
        if not connection.answered:
            self.connections.note_answer(connection)
        return answer

    async def _metadata(self, connection: Connection) -> Metadata:
        """Of a call: with the token that is given, or that the password gets, where there is either."""
        if not self._papers.has_secret:
            return REQUIRE_LEADER
        token = self._papers.token()
        if not token:
            async with self._authenticating:  # etcd hashes each password at great cost
                if not self._token:
                    self._token = await self._authenticate(connection)
                token = self._token
        return (*REQUIRE_LEADER, ("token", token))

    async def _authenticate(self, connection: Connection) -> str:
        self.counts.authentications += 1
        request = rpc.AuthenticateRequest(name=self._settings.username, password=self._papers.password())
        answer = await self._send("authenticate", connection, "Auth", "Authenticate", request, REQUIRE_LEADER)
        self._token_since = time.monotonic()
        return str(answer.token)

    @property
    def _token_is_old(self) -> bool:
        """Whether it may be for want of a valid token that a watch is refused: etcd 3.5.1 calls that a permission."""
        return time.monotonic() - self._token_since > OLD_TOKEN_SECONDS


def _is_cancelled() -> bool:
    """Whether somebody cancels the task that runs: a connection that is closed cancels the calls on it likewise."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
