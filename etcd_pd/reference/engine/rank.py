"""The frame of a rank process: starts, loads the model, runs the role's loop, and ends with the instance's front."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import sys
import time
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any, Protocol

import torch
import zmq

from etcd_pd import Client, EtcdPDError

from . import tracing
from .card import ModelCard, read_card
from .decode import DecodeLoop
from .emulated import EmulatedModel
from .link import Link, RankSpec
from .messages import Abort, Agent, Drain, Fatal, Pass, Ready, Stop, ToRank, Work
from .model import Model
from .prefill import PrefillLoop
from .requests import DECODE, PREFILL
from .settings import REAL, DecodeSettings, EngineSettings, PrefillSettings
from .transfer import KVClient, KVServer

if TYPE_CHECKING:
    from .spans import Spans

_log = logging.getLogger(__name__)

#: Longest time, in seconds, that a rank without work looks at nothing: deadlines are coarser than this.
_IDLE_SECONDS = 0.5
#: The same while the client is not connected: there is no file descriptor yet that could wake the loop.
_CONNECTING_SECONDS = 0.05
#: How long an agent may be gone before the front turns requests away, and before those that need it end, seconds: one
#: that is started again is back within the second.
_AGENT_SECONDS, _AGENT_GONE_SECONDS = 0.5, 1.5


class Loop(Protocol):
    """What a role does with what comes in. Every method returns soon, but for one computing step in ``turn``."""

    @property
    def registry(self) -> Client:
        """The registry's client."""

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What may wake it."""

    @property
    def kv_port(self) -> int:
        """Where it serves KV caches, 0 where it does not."""

    def accept(self, work: Work) -> None:
        """Take a request on."""

    def abort(self, id: int, reason: str) -> None:
        """Give a request up."""

    def drain(self) -> None:
        """No further requests will come."""

    def begin(self, started: Pass) -> None:
        """A forward pass of all ranks starts."""

    def turn(self) -> bool:
        """Do what is due; True where more can be computed at once."""

    @property
    def next_turn(self) -> float:
        """Monotonic time of the next turn, whether something comes in or not; may be infinite."""

    def end_agentless(self) -> None:
        """The agent is gone: end the requests that need it."""

    def close(self) -> None:
        """Let go of everything."""


def main(spec: RankSpec) -> None:
    """Run a rank until its front says so or is gone. The target of a rank's process."""
    # a terminal or a supervisor signals the whole group: the front alone decides when its ranks end
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _configure_logging(spec)
    torch.set_num_threads(spec.settings.torch_threads)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = Link(context, spec.link, spec.dp_rank)
    try:
        card = read_card(spec.model_path, spec.settings)
        spans = _start_tracing(spec)
        loop = _make_loop(spec, card, context, link, spans)
    except EtcdPDError as error:
        link.send(Fatal(dp_rank=spec.dp_rank, message=str(error)))
        context.destroy(linger=1000)
        sys.exit(1)
    try:
        link.send(Ready(dp_rank=spec.dp_rank, card=card, kv_port=loop.kv_port))
        _log.info("rank ready dp_rank=%d pid=%d kv_port=%d", spec.dp_rank, os.getpid(), loop.kv_port)
        _serve(loop, link, spec)
        loop.close()
    except Exception:
        # what the loop holds is in an unknown state: the front fails its requests, the agent its rooms
        _log.exception("rank crashed dp_rank=%d", spec.dp_rank)
        loop.registry.close()
        sys.exit(1)
    finally:
        if spans:
            spans.close()
        context.destroy(linger=1000)


def _serve(loop: Loop, link: Link, spec: RankSpec) -> None:
    parent = parent_process()
    front = -1 if parent is None else int(parent.sentinel)
    agent = _AgentWatch(loop, link)
    while True:
        for message in link.receive():
            if isinstance(message, Stop):
                return
            _dispatch(loop, message)
        busy = loop.turn()
        agent.look()
        if front in _wait(loop, link, front, busy):
            _log.error("front is gone, ending dp_rank=%d", spec.dp_rank)
            _remove_link(spec.link)
            return


class _AgentWatch:
    """Tells the front whether the agent is there, and ends what needs it where it does not come back."""

    def __init__(self, loop: Loop, link: Link) -> None:
        self._loop, self._link = loop, link
        self._seen_at = time.monotonic()
        self._present = True

    def look(self) -> None:
        """See how it is."""
        now = time.monotonic()
        if self._loop.registry.state == "connected":
            self._seen_at = now
        present = now - self._seen_at < _AGENT_SECONDS
        if present is not self._present:
            self._present = present
            self._link.send(Agent(present))
        if now - self._seen_at >= _AGENT_GONE_SECONDS:
            self._loop.end_agentless()


def _dispatch(loop: Loop, message: ToRank) -> None:
    if isinstance(message, Work):
        loop.accept(message)
    elif isinstance(message, Abort):
        loop.abort(message.id, message.reason)
    elif isinstance(message, Drain):
        loop.drain()
    elif isinstance(message, Pass):
        loop.begin(message)


def _wait(loop: Loop, link: Link, front: int, busy: bool) -> set[Any]:
    """Sleep until something comes in, unless there is work; what did come in."""
    poller = zmq.Poller()
    for socket in (link.socket, *loop.sockets):
        poller.register(socket, zmq.POLLIN)
    descriptor = loop.registry.fileno()
    for plain in (descriptor, front):
        if plain >= 0:
            poller.register(plain, zmq.POLLIN)
    seconds = 0.0 if busy else _IDLE_SECONDS if descriptor >= 0 else _CONNECTING_SECONDS
    seconds = max(0.0, min(seconds, loop.next_turn - time.monotonic()))
    return {source for source, _ in poller.poll(math.ceil(seconds * 1000))}


def _start_tracing(spec: RankSpec) -> Spans | None:
    role = PREFILL if isinstance(spec.settings, PrefillSettings) else DECODE
    return tracing.start(role, spec.settings.instance_id, spec.dp_rank)


def _make_loop(
    spec: RankSpec, card: ModelCard, context: zmq.Context[zmq.Socket[bytes]], link: Link, spans: Spans | None
) -> Loop:
    model = _make_model(spec.settings, card)
    registry = spec.connect(spec.settings.socket_path)
    if isinstance(spec.settings, PrefillSettings):
        server = KVServer(context, spec.settings.kv_address)
        return PrefillLoop(spec, spec.settings, card, model, registry, server, link, spans)
    assert isinstance(spec.settings, DecodeSettings)
    return DecodeLoop(spec, spec.settings, card, model, registry, KVClient(context), link, spans)


def _make_model(settings: EngineSettings, card: ModelCard) -> Model | EmulatedModel:
    if settings.compute == REAL:
        return Model(card.path, settings.device, settings.dtype)
    lock_step = isinstance(settings, PrefillSettings) and settings.emulated_lock_step
    # in lock-step a prompt takes the time of its pass, and none of its own
    prefill_rate = math.inf if lock_step else settings.emulated_prefill_tokens_per_second
    return EmulatedModel(prefill_rate, settings.emulated_decode_steps_per_second, card.vocabulary)


def _configure_logging(spec: RankSpec) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(spec.log_format)
    logging.basicConfig(level=spec.log_level, handlers=[handler], force=True)


def _remove_link(address: str) -> None:
    """Remove the directory of the front's socket: a front that was killed cannot."""
    shutil.rmtree(os.path.dirname(address.removeprefix("ipc://")), ignore_errors=True)
