"""The rank processes of an instance: started together, watched, spoken with, and ended together."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import zmq
import zmq.asyncio

from etcd_pd import Client, EtcdPDError

from .card import ModelCard
from .decode_legs import DecodeLegs
from .dispatch import Dispatcher, Replies
from .errors import RequestFailed
from .legs import Leg, Legs, failure_of
from .lock_step import LockStep, PassCost
from .messages import (
    Abort,
    Agent,
    Announced,
    Began,
    Bring,
    Drain,
    Draining,
    Failed,
    Met,
    Pass,
    Ready,
    Stop,
    ToFront,
    ToRank,
    Update,
    Work,
    decode_to_front,
    encode,
)
from .prefill_legs import PrefillLegs
from .rank_process import RankProcess, start_ranks, stop_fork_server
from .requests import Item
from .settings import EngineSettings, PrefillSettings

_log = logging.getLogger(__name__)

#: How long a rank that was asked to stop may take before it is killed.
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02


class StartFailed(EtcdPDError):
    """The instance could not start, or cannot go on."""


class RankPool:
    """The rank processes of one instance.

    Args:
        settings: the instance's.
        dispatcher: accounts for the ranks' loads.
        model_path: its model's directory.
        connect: opens the registry's client in each rank.
        on_fatal: called once when the instance cannot go on, with the reason.

    Attributes:
        legs: the other legs of its requests.
    """

    def __init__(
        self,
        settings: EngineSettings,
        dispatcher: Dispatcher,
        model_path: str,
        connect: Callable[[str], Client],
        on_fatal: Callable[[str], None],
    ) -> None:
        self.legs: Legs = DecodeLegs(self._end_leg)
        if isinstance(settings, PrefillSettings):
            self.legs = PrefillLegs(self._end_leg, settings.decode_arrival_seconds)
        self._settings = settings
        self._dispatcher = dispatcher
        self._model_path = model_path
        self._connect = connect
        self._on_fatal = on_fatal
        self._ranks: list[RankProcess] = []
        self._lock_step = _lock_step(settings)
        self._card: ModelCard | None = None
        self._all_ready = asyncio.Event()
        self._failure: str | None = None
        self._draining = False
        self._stopping = False
        self._directory = tempfile.mkdtemp(prefix="etcd-pd-ranks-")
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._starting: asyncio.Task[None] | None = None
        self._receiving: asyncio.Task[None] | None = None

    # --- starting and stopping

    async def start(self) -> ModelCard:
        """Start every rank and wait until all of them have loaded the model.

        Returns:
            what they found out about it.

        Raises:
            StartFailed: one could not, or it took too long. :meth:`stop` ends the others.
        """
        address = f"ipc://{self._directory}/front"
        self._socket.bind(address)
        starting = partial(start_ranks, self._ranks, self._settings, self._model_path, self._connect, address)
        self._starting = asyncio.create_task(asyncio.to_thread(starting))
        # a thread cannot be cancelled: stop() waits for it
        await asyncio.shield(self._starting)
        for rank in self._ranks:
            asyncio.get_running_loop().add_reader(rank.process.sentinel, self._on_death, rank)
        self._receiving = asyncio.create_task(self._receive())
        try:
            await asyncio.wait_for(self._all_ready.wait(), self._settings.startup_timeout_seconds)
        except asyncio.TimeoutError:
            self._failure = f"a rank was not ready after {self._settings.startup_timeout_seconds:g} s"
        if self._failure is not None:
            raise StartFailed(self._failure)
        assert self._card is not None
        return self._card

    async def drain(self) -> None:
        """Take no new requests, and give those in flight their time."""
        self._draining = True
        for rank in self._ranks:
            self._send(rank, Drain())
        deadline = time.monotonic() + self._settings.drain_timeout_seconds
        while not self._dispatcher.idle and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """End every rank. What is still in flight fails. Leaves no process and no file."""
        self._stopping = True
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        for rank in self._ranks:
            self._send(rank, Stop())
        await asyncio.gather(*(self._join(rank) for rank in self._ranks))
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)
        await self.legs.stop()
        self._context.destroy(linger=0)
        shutil.rmtree(self._directory, ignore_errors=True)
        await asyncio.to_thread(stop_fork_server)

    async def _join(self, rank: RankProcess) -> None:
        # one that is still loading the model does not know that it is to stop
        deadline = time.monotonic() + (_STOP_SECONDS if rank.ready else 0)
        while rank.process.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        rank.process.kill()
        rank.process.join()
        self._on_death(rank)

    # --- requests

    @property
    def trouble(self) -> RequestFailed | None:
        """Why the instance takes no requests; None where it does."""
        if self._draining:
            return RequestFailed(503, "Draining", "the instance is stopping")
        states = {rank.state for rank in self._ranks}
        if "serving" in states:
            return None
        if "without an agent" in states:
            return RequestFailed(503, "AgentUnavailable", f"no agent answers at {self._settings.socket_path}")
        if "draining" in states:
            return RequestFailed(503, "RankDraining", "the node is being taken out of service")
        return RequestFailed(503, "NotServing", "no rank takes requests")

    def describe(self) -> list[dict[str, Any]]:
        """What is known about each rank."""
        return [
            {
                "dp_rank": rank.dp_rank,
                "pid": rank.process.pid,
                "state": rank.state,
                "epoch": rank.epoch,
                "kv_port": rank.kv_port,
            }
            for rank in self._ranks
        ]

    @asynccontextmanager
    async def request(
        self, items: Sequence[Item], request_id: str = "", traceparent: str = ""
    ) -> AsyncIterator[Replies]:
        """Hand prompts to ranks, with what their logs and traces shall call the request.

        Leaving the context early gives them up. However it ends, the other leg of the request learns of it.

        Raises:
            RequestFailed: no rank can take one of them, or one ended without a result.
        """
        replies = Replies()
        taken: list[tuple[RankProcess, int]] = []
        legs: list[Leg] = []
        failure: RequestFailed | None = None
        try:
            for item in items:
                leg = Leg(item.room, request_id)
                if self.legs.begin(leg, item.instance):
                    legs.append(leg)
            if trouble := self.trouble:
                raise trouble
            for index, item in enumerate(items):
                dp_rank, id = self._dispatcher.take(item, index, replies)
                taken.append((self._ranks[dp_rank], id))
                self._send(self._ranks[dp_rank], _work(id, item, request_id, traceparent))
            yield replies
        except BaseException as exc:
            failure = failure_of(exc)
            raise
        finally:
            for leg in legs:
                self.legs.end(leg, failure)
            for rank, id in taken:
                if self._dispatcher.give_up(rank.dp_rank, id):
                    self._send(rank, Abort(id, "the client has gone" if failure is None else str(failure)[:500]))

    def _end_leg(self, leg: Leg, error: RequestFailed) -> None:
        """The other leg of a request has ended: what still needs it ends too."""
        found = self._dispatcher.find_waiting(leg.room)
        if found is not None:
            dp_rank, id = found
            self._dispatcher.fail(dp_rank, [id], error)
            self._send(self._ranks[dp_rank], Abort(id, str(error)[:500]))

    # --- what ranks say

    async def _receive(self) -> None:
        while True:
            identity, packet = await self._socket.recv_multipart()
            self._on_message(self._ranks[int(identity)], decode_to_front(packet))

    def _on_message(self, rank: RankProcess, message: ToFront) -> None:
        if isinstance(message, Update):
            self._dispatcher.update(rank.dp_rank, message)
        elif isinstance(message, Began):
            self._dispatcher.begin(rank.dp_rank, message.id)
        elif isinstance(message, Bring):
            if self._lock_step:
                self._start_pass(self._lock_step.bring(rank.dp_rank, message))
        elif isinstance(message, Failed):
            error = RequestFailed(message.status, message.kind, message.message, **message.details)
            self._dispatcher.fail(rank.dp_rank, [message.id], error)
        elif isinstance(message, Ready):
            self._on_ready(rank, message)
        elif isinstance(message, Announced):
            rank.epoch = message.epoch
        elif isinstance(message, Met):
            self.legs.meet(message.address)
        elif isinstance(message, Agent):
            _log.log(
                logging.INFO if message.present else logging.WARNING,
                "agent %s dp_rank=%d",
                "is back" if message.present else "does not answer",
                rank.dp_rank,
            )
            rank.agent = message.present
            self._settle(rank)
        elif isinstance(message, Draining):
            rank.draining = True
            self._settle(rank)
        else:
            self._fail_instance(f"dp_rank {message.dp_rank}: {message.message}")

    def _start_pass(self, started: Pass | None) -> None:
        if started is not None:
            for rank in self._ranks:
                self._send(rank, started)

    def _settle(self, rank: RankProcess) -> None:
        self._dispatcher.serve(rank.dp_rank, rank.state == "serving")

    def _on_ready(self, rank: RankProcess, message: Ready) -> None:
        rank.ready, rank.kv_port, self._card = True, message.kv_port, message.card
        self._settle(rank)
        if all(other.ready for other in self._ranks):
            self._all_ready.set()

    def _on_death(self, rank: RankProcess) -> None:
        if not rank.alive:
            return
        rank.alive = False
        asyncio.get_running_loop().remove_reader(rank.process.sentinel)
        message = f"the process of dp_rank {rank.dp_rank} ended"
        self._dispatcher.lose(rank.dp_rank, RequestFailed(500, "RankDied", message, dp_rank=rank.dp_rank))
        if self._stopping:
            return
        if self._lock_step:
            self._start_pass(self._lock_step.lose(rank.dp_rank))
        _log.error("rank died dp_rank=%d pid=%s", rank.dp_rank, rank.process.pid)
        if not rank.ready:
            self._fail_instance(f"dp_rank {rank.dp_rank} ended before it was ready; its log says why")
        elif not any(other.alive for other in self._ranks):
            self._fail_instance(f"dp_rank {rank.dp_rank} ended, and no rank is left")

    def _fail_instance(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            if self._all_ready.is_set():
                self._on_fatal(reason)
            self._all_ready.set()

    def _send(self, rank: RankProcess, message: ToRank) -> None:
        # never waits: the socket has no limit, and says nothing to a rank that is gone
        if rank.alive:
            self._socket.send_multipart([str(rank.dp_rank).encode(), encode(message)])


def _lock_step(settings: EngineSettings) -> LockStep | None:
    if not isinstance(settings, PrefillSettings) or not settings.emulated_lock_step:
        return None
    shared = settings.emulated_shared_tokens_per_second
    cost = PassCost(1 / settings.emulated_prefill_tokens_per_second, 1 / shared if shared else 0.0)
    return LockStep(settings.dp_size, cost)


def _work(id: int, item: Item, request_id: str, traceparent: str) -> Work:
    return Work(
        id=id,
        room=item.room,
        instance=item.instance,
        input_ids=item.input_ids,
        sampling=item.sampling,
        prefill_dp_rank=item.prefill_dp_rank,
        routed_dp_rank=item.routed_dp_rank,
        logprobs=item.logprobs,
        request_id=request_id,
        traceparent=traceparent,
    )
