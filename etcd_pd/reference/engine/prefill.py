"""A prefill rank: one synchronous loop, as in SGLang's scheduler.

A request is registered the moment the rank takes it, before anything is computed, so the registry's work and decode's
look-up run beside the computation. Its KV cache then waits for decode, and the request ends when decode has it.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from etcd_pd import (
    Announced,
    Client,
    Described,
    Drained,
    EtcdPDError,
    NotAnnounced,
    Rank,
    RankEnded,
    Refused,
    Registered,
    Rejected,
    Topology,
)
from etcd_pd.wire.values import DRAINING

from . import messages
from .card import ModelCard
from .emulated import EmulatedModel
from .errors import ABORTED, RequestFailed, from_registry
from .link import Link, RankSpec
from .lock_step import Passes
from .messages import Began, Fatal, Pass, Update, Work
from .model import Model
from .prompt_queue import WHOLE_PROMPTS, Computed, PromptQueue
from .settings import PrefillSettings
from .transfer import Ack, Answer, Ask, Cancel, KVServer, boot_id

if TYPE_CHECKING:
    from .spans import Spans

_log = logging.getLogger(__name__)

#: Rooms that decode may ask for before their requests arrive; more are refused.
_MAX_EARLY_ASKS = 10_000
#: How often deadlines are looked at.
_EXPIRY_SECONDS = 0.1


@dataclass(eq=False)
class _Task:
    """A request between its arrival and the handing over of its KV cache."""

    work: Work
    deadline: float
    registers: bool
    registered_ns: int = 0
    token: int = 0
    lease_id: int = 0
    asker: bytes | None = None
    computed: Computed | None = None
    handed_over: bool = False


class PrefillLoop:
    """What a prefill rank does; see :class:`.rank.Loop`."""

    def __init__(
        self,
        spec: RankSpec,
        settings: PrefillSettings,
        card: ModelCard,
        model: Model | EmulatedModel,
        registry: Client,
        server: KVServer,
        link: Link,
        spans: Spans | None = None,
    ) -> None:
        self.registry = registry
        self.kv_port = server.port
        self._settings = settings
        self._dp_rank = spec.dp_rank
        lock_step = settings.emulated_lock_step
        self._queue = PromptQueue(model, WHOLE_PROMPTS if lock_step else settings.chunk_tokens)
        self._passes = Passes(self._queue, spec.dp_rank, settings.emulated_pass_tokens) if lock_step else None
        self._server = server
        self._link = link
        self._spans = spans
        self._boot_id = boot_id()
        self._tasks: dict[int, _Task] = {}
        self._room_of: dict[int, int] = {}
        self._early_asks: dict[int, tuple[bytes, float]] = {}
        self._held_tokens = 0
        self._next_expiry = 0.0
        self._draining = False
        self._incarnation = ""
        registry.decode.follow(settings.instance_id)
        registry.prefill.announce(
            settings.instance_id,
            rank=Rank(spec.dp_rank),
            topology=Topology(dp=settings.dp_size),
            launch_id=spec.launch_id,
            addresses=settings.addresses,
            ip=settings.kv_address,
            port=server.port,
            policy=settings.policy,
            fingerprint=card.fingerprint,
        )

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The transfer socket."""
        return [self._server.socket]

    # --- from the front

    def accept(self, work: Work) -> None:
        """Take a request on and register its room."""
        room = work.room
        if room in self._tasks:
            error = f"room {room} is in flight on this rank already"
            self._link.fail(work.id, RequestFailed(409, "RoomConflict", error, room=room))
            return
        # where decode can tell the rank by itself, the request does not depend on etcd at all
        registers = not self._settings.rank_follows_from_request and work.prefill_dp_rank is None
        task = _Task(work, time.monotonic() + self._settings.bootstrap_timeout_seconds, registers)
        if registers:
            task.registered_ns = time.monotonic_ns()
            try:
                self.registry.prefill.register(room)
            except EtcdPDError as refusal:
                self._link.fail(work.id, from_registry(refusal))
                return
        task.asker, _ = self._early_asks.pop(room, (None, 0.0))
        self._tasks[room] = task
        self._room_of[work.id] = room
        self._queue.add(work)
        known = (room, len(work.input_ids), registers, work.request_id)
        _log.debug("accepted room=%d tokens=%d registers=%s request=%s", *known)

    def abort(self, id: int, reason: str) -> None:
        """The HTTP client has gone."""
        room = self._room_of.get(id)
        if room is not None:
            self._fail(self._tasks[room], RequestFailed(499, ABORTED, reason, room=room))

    def drain(self) -> None:
        """No further requests will come."""
        try:
            self.registry.prefill.drain()
        except EtcdPDError as error:
            _log.info("not drained in the registry reason=%r", str(error))

    def end_agentless(self) -> None:
        """The agent is gone: what it has not registered will not be resolved."""
        for task in [task for task in self._tasks.values() if task.registers and not task.token]:
            message = "the agent of prefill's node does not answer"
            self._fail(task, RequestFailed(503, "AgentUnavailable", message, room=task.work.room))

    # --- the loop

    def turn(self) -> bool:
        """Do what is due; True where more can be computed at once."""
        for event in self.registry.prefill.poll():
            self._on_registry(event)
        for described in self.registry.decode.poll():
            self._on_described(described)
        for peer, message in self._server.receive():
            self._on_transfer(peer, message)
        if self._passes:
            self._pass_on(self._passes)
        elif self._can_compute:
            self._compute()
        self._expire()
        return self._can_compute and not self._passes

    @property
    def next_turn(self) -> float:
        """The end of the running pass, where ranks run in lock-step."""
        return self._passes.ends if self._passes else math.inf

    def begin(self, started: Pass) -> None:
        """A forward pass of all ranks starts."""
        assert self._passes
        for work in self._passes.begin(started):
            self._link.send(Began(work.id))

    def close(self) -> None:
        """Fail what is left and leave the registry."""
        for task in list(self._tasks.values()):
            self._fail(task, RequestFailed(503, "Stopping", "the instance is stopping", room=task.work.room))
        self._server.close()
        self.registry.close()

    @property
    def _can_compute(self) -> bool:
        return len(self._queue) > 0 and self._held_tokens < self._settings.max_held_tokens

    def _compute(self) -> None:
        if not self._queue.begun:
            self._link.send(Began(self._queue.waiting[0].id))
        done = self._queue.step()
        if done is not None:
            self._on_computed(*done)

    def _pass_on(self, passes: Passes) -> None:
        done = passes.end()
        # the others wait for it, and nobody for what is done
        bring = passes.bring(pause=not self._can_compute)
        if bring is not None:
            self._link.send(bring)
        for work, computed in done:
            task = self._tasks.get(work.room)
            if task is not None and task.work is work:
                self._on_computed(work, computed)

    def _on_computed(self, work: Work, computed: Computed) -> None:
        task = self._tasks[work.room]
        task.computed = computed
        self._held_tokens += computed.tokens
        known = (work.room, computed.tokens, len(computed.data), work.request_id)
        _log.debug("computed room=%d tokens=%d kv_bytes=%d request=%s", *known)
        if self._spans:
            self._trace(self._spans, "prefill", task, computed.began_ns, tokens=computed.tokens)
        self._hand_over(task)

    def _expire(self) -> None:
        now = time.monotonic()
        if now < self._next_expiry:
            return
        self._next_expiry = now + _EXPIRY_SECONDS
        for task in [task for task in self._tasks.values() if task.deadline < now]:
            message = f"decode did not fetch room {task.work.room} in time"
            self._fail(task, RequestFailed(504, "BootstrapTimeout", message, room=task.work.room))
        for room in [room for room, (_, expires) in self._early_asks.items() if expires < now]:
            del self._early_asks[room]

    # --- from the registry

    def _on_registry(self, event: object) -> None:
        if isinstance(event, Registered):
            task = self._tasks.get(event.room)
            if task is not None:
                task.token, task.lease_id = event.token, event.lease_id
                known = (event.room, event.lease_id, event.token, task.work.request_id)
                _log.debug("registered room=%d lease=%x token=%d request=%s", *known)
                if self._spans:
                    # the transaction that created the key is what made the room visible
                    self._trace(self._spans, "register", task, task.registered_ns, revision=event.token)
                self._finish_if_known(task)
        elif isinstance(event, Rejected):
            self._on_rejected(event)
        elif isinstance(event, RankEnded):
            self._on_rank_ended(event)
        elif isinstance(event, Announced):
            self._incarnation = event.incarnation
            self._link.send(messages.Announced(dp_rank=self._dp_rank, epoch=event.epoch))
            _log.info("announced instance=%s dp_rank=%d epoch=%d", event.instance, self._dp_rank, event.epoch)
        elif isinstance(event, Refused):
            self._link.send(Fatal(dp_rank=self._dp_rank, message=str(event.error)))
        elif isinstance(event, Drained):
            _log.info("drained dp_rank=%d", self._dp_rank)

    def _on_described(self, event: object) -> None:
        """An operator drains the whole node by its agent: this instance's own keys say so."""
        if isinstance(event, Described) and event.instance and not self._draining:
            own = [e for e in event.instance.endpoints(self._dp_rank) if e.incarnation == self._incarnation]
            if any(endpoint.state == DRAINING for endpoint in own):
                self._draining = True
                self._link.send(messages.Draining())

    def _on_rejected(self, event: Rejected) -> None:
        task = self._tasks.get(event.room)
        if task is None:
            return
        if self._spans and not task.token:
            self._trace(self._spans, "register", task, task.registered_ns, type(event.error).__name__)
        if task.handed_over:
            self._finish(task)
        else:
            self._end(task, from_registry(event.error))

    def _on_rank_ended(self, event: RankEnded) -> None:
        _log.warning("rank ended dp_rank=%d epoch=%d reason=%r", self._dp_rank, event.epoch, event.reason)
        self._link.send(messages.Announced(dp_rank=self._dp_rank, epoch=0))
        for task in list(self._tasks.values()):
            # what is registered is dead; what is still on its way gets a Rejected, or a place in the next epoch
            if task.token or not task.registers:
                message = f"epoch {event.epoch} of dp_rank {self._dp_rank} ended: {event.reason}"
                self._end(task, RequestFailed(500, "RankLost", message, room=task.work.room))

    # --- handing over

    def _on_transfer(self, peer: bytes, message: Ask | Ack | Cancel) -> None:
        task = self._tasks.get(message.room)
        if isinstance(message, Ask):
            self._on_ask(peer, message.room, task)
        elif isinstance(message, Cancel):
            self._early_asks.pop(message.room, None)
            if task is not None and task.asker == peer:
                # it does not want the room any more
                task.asker = None
                reason = f"decode gave room {message.room} up: {message.reason}"
                self._fail(task, RequestFailed(500, "DecodeCancelled", reason, room=message.room))
        elif task is not None and task.asker == peer and task.computed is not None and not task.handed_over:
            task.handed_over = True
            self._held_tokens -= task.computed.tokens
            self._finish_if_known(task)

    def _on_ask(self, peer: bytes, room: int, task: _Task | None) -> None:
        if task is None:
            if len(self._early_asks) >= _MAX_EARLY_ASKS:
                self._server.refuse(peer, room, "TooManyAsks", "too many rooms were asked for before their requests")
            else:
                self._early_asks[room] = peer, time.monotonic() + self._settings.bootstrap_timeout_seconds
        elif task.asker not in (None, peer):
            self._server.refuse(peer, room, "RoomConflict", f"room {room} was asked for by another decode rank")
        else:
            task.asker = peer
            self._hand_over(task)

    def _hand_over(self, task: _Task) -> None:
        """Send the KV cache, if it is there and somebody wants it."""
        if task.asker is None or task.computed is None:
            return
        computed = task.computed
        answer = Answer(
            room=task.work.room,
            tokens=computed.tokens,
            first_token=computed.first_token,
            first_logprob=computed.first_logprob,
            seed=computed.seed,
            registered_ns=task.registered_ns,
            boot_id=self._boot_id,
        )
        if not self._server.answer(task.asker, answer, computed.data):
            # the peer is gone; its successor, if there is one, asks anew
            task.asker = None

    def _finish_if_known(self, task: _Task) -> None:
        """End the request when decode has the cache; the registry's answer, if it is still due, belongs in it."""
        if task.handed_over and (task.token or not task.registers):
            self._finish(task)

    def _finish(self, task: _Task) -> None:
        room = task.work.room
        if task.registers:
            self.registry.prefill.release(room)
        self._forget(task)
        assert task.computed is not None
        self._link.send(
            Update(
                id=task.work.id,
                token_ids=[task.computed.first_token],
                logprobs=[task.computed.first_logprob] if task.work.logprobs else [],
                finish_reason={"type": "length", "length": 0},
                meta={"dp_rank": self._dp_rank, "room": room, "lease_id": task.lease_id, "token": task.token},
            )
        )
        _log.debug("handed over room=%d request=%s", room, task.work.request_id)

    # --- ends without a result

    def _fail(self, task: _Task, error: RequestFailed) -> None:
        """End a request and notify those who wait for its room."""
        if task.registers:
            try:
                self.registry.prefill.fail(task.work.room, str(error)[:500])
            except NotAnnounced:
                _log.debug("nobody to notify of room=%d", task.work.room)
        self._end(task, error)

    def _end(self, task: _Task, error: RequestFailed) -> None:
        """End a request whose room the registry has given up."""
        if task.asker is not None:
            self._server.refuse(task.asker, task.work.room, error.type, str(error))
        if task.computed is None:
            self._queue.remove(task.work.id)
        elif not task.handed_over:
            self._held_tokens -= task.computed.tokens
        self._forget(task)
        self._link.fail(task.work.id, error)
        _log.debug("failed room=%d type=%s request=%s", task.work.room, error.type, task.work.request_id)

    def _trace(self, spans: Spans, step: str, task: _Task, began_ns: int, error: str = "", **facts: int) -> None:
        place: dict[str, int | str] = {"instance": self._settings.instance_id, "dp_rank": self._dp_rank}
        spans.record(step, task.work, began_ns, error, **place, **facts)

    def _forget(self, task: _Task) -> None:
        del self._tasks[task.work.room]
        del self._room_of[task.work.id]
