"""A decode rank: one synchronous loop that learns ranks, fetches KV caches and generates, all at once.

A request waits for its prefill rank (the registry), then for a place in the batch, then for its KV cache (the
transfer), and then generates one token with every step of the running batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import zmq

from etcd_pd import Assignment, Client, Described, Ended, EtcdPDError, PrefillInstance, PrefillLost, Resolved

from .card import ModelCard
from .emulated import EmulatedModel
from .errors import ABORTED, RequestFailed, from_registry
from .fit import check_named_rank, misfit
from .generation import Generation
from .kv import KVCache, KVFormatError
from .link import Link, RankSpec
from .messages import Met, Pass, Work
from .model import Model
from .running import Running
from .settings import DecodeSettings
from .text import Tokenizer
from .transfer import Answer, Arrival, KVClient, Refusal, boot_id

if TYPE_CHECKING:
    from .spans import Spans

_log = logging.getLogger(__name__)

#: How often deadlines are looked at.
_EXPIRY_SECONDS = 0.05


class _Task:
    """A request from its arrival to its last token."""

    def __init__(self, work: Work, kv_seconds: float, seconds: float) -> None:
        now = time.monotonic()
        self.work = work
        self.kv_deadline = now + kv_seconds
        self.deadline = now + seconds
        self.assignment: Assignment | None = None
        self.resolved_ns = 0
        # the prefill rank that was asked for the cache, empty before
        self.peer = ""
        self.generation: Generation | None = None
        self.begin("resolve")

    def begin(self, step: str) -> None:
        """What is done now, as traces call it; empty: nothing, it waits for its place."""
        self.step, self.began_ns = step, time.monotonic_ns()


class DecodeLoop:
    """What a decode rank does; see :class:`.rank.Loop`."""

    kv_port = 0

    def __init__(
        self,
        spec: RankSpec,
        settings: DecodeSettings,
        card: ModelCard,
        model: Model | EmulatedModel,
        registry: Client,
        transfer: KVClient,
        link: Link,
        spans: Spans | None = None,
    ) -> None:
        self.registry = registry
        self._settings = settings
        self._card = card
        self._layout = model.layout
        self._transfer = transfer
        self._link = link
        self._spans = spans
        self._tokenizer = Tokenizer(card.path)
        self._boot_id = boot_id()
        self._running = Running(model.batch())
        self._tasks: dict[int, _Task] = {}
        self._id_of: dict[int, int] = {}
        self._queue: deque[_Task] = deque()
        self._fetching = 0
        self._met: set[str] = set()  # prefill instances that the front knows of, by the address in requests
        self._next_expiry = 0.0
        if spec.dp_rank == 0:
            registry.decode.announce(settings.instance_id, address=settings.address)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The connections to prefill ranks."""
        return self._transfer.sockets

    # --- from the front

    def accept(self, work: Work) -> None:
        """Take a request on and ask the registry for its prefill rank."""
        if work.room in self._id_of:
            error = f"room {work.room} is in flight on this rank already"
            self._link.fail(work.id, RequestFailed(409, "RoomConflict", error, room=work.room))
            return
        task = _Task(work, self._settings.kv_timeout_seconds, self._settings.request_timeout_seconds)
        try:
            self._check_named_rank(work)
            self.registry.decode.want(
                work.instance, work.room, timeout=self._settings.kv_timeout_seconds, dp_rank=work.prefill_dp_rank
            )
        except EtcdPDError as error:
            self._link.fail(work.id, error if isinstance(error, RequestFailed) else from_registry(error))
            return
        self._tasks[work.id] = task
        self._id_of[work.room] = work.id
        _log.debug("accepted room=%d instance=%s request=%s", work.room, work.instance, work.request_id)

    def abort(self, id: int, reason: str) -> None:
        """The HTTP client has gone."""
        task = self._tasks.get(id)
        if task is not None:
            self._fail(task, RequestFailed(499, ABORTED, reason))

    def drain(self) -> None:
        """No further requests will come."""

    def end_agentless(self) -> None:
        """The agent is gone: who waits for a rank will not learn it."""
        for task in [task for task in self._tasks.values() if task.assignment is None]:
            message = "the agent of decode's node does not answer"
            self._fail(task, RequestFailed(503, "AgentUnavailable", message, room=task.work.room))

    # --- the loop

    def begin(self, started: Pass) -> None:
        """Decode ranks compute each for itself: no front tells them this."""

    @property
    def next_turn(self) -> float:
        """Nothing here is due at a time."""
        return math.inf

    def turn(self) -> bool:
        """Do what is due; True where more can be computed at once."""
        for event in self.registry.decode.poll():
            if isinstance(event, Resolved):
                self._on_resolved(event)
            elif isinstance(event, Ended):
                self._on_ended(event)
            elif isinstance(event, Described):
                self._on_described(event)
        for message in self._transfer.receive():
            if isinstance(message, Refusal):
                self._on_refusal(message)
            else:
                self._on_arrival(message)
        self._fetch_next()
        self._step()
        self._expire()
        return len(self._running) > 0

    def close(self) -> None:
        """Fail what is left and leave the registry."""
        for task in list(self._tasks.values()):
            self._fail(task, RequestFailed(503, "Stopping", "the instance is stopping"))
        self._transfer.close()
        self.registry.close()

    # --- which rank

    def _check_named_rank(self, work: Work) -> None:
        """Refuse at once what the prefill instance refuses too: waiting for such a room would end in a timeout."""
        if work.prefill_dp_rank is None and work.routed_dp_rank is None:
            return
        instance = self.registry.decode.instance(work.instance)
        if instance is None:
            self.registry.decode.follow(work.instance)
        else:
            check_named_rank(work, instance)

    def _on_described(self, event: Described) -> None:
        for task in list(self._tasks.values()):
            if task.work.instance == event.name and task.assignment is None and event.instance is not None:
                try:
                    check_named_rank(task.work, event.instance)
                except RequestFailed as error:
                    self._fail(task, error)

    def _on_resolved(self, event: Resolved) -> None:
        found = event.assignment
        if event.instance not in self._met:
            self._met.add(event.instance)
            self._link.send(Met(event.instance))
        task = self._task_of(found.room)
        if task is not None and task.assignment is None:
            task.assignment, task.resolved_ns = found, time.monotonic_ns()
            # at once: neither leg needs to wait for a place in the batch to learn it
            if self._refuse_misfit(task, self.registry.decode.instance(found.instance)):
                return
            if self._spans:
                _trace(self._spans, task, source=found.source)
            task.begin("")
            self._queue.append(task)
            _log.debug("resolved room=%d dp_rank=%d request=%s", found.room, found.dp_rank, task.work.request_id)

    def _on_ended(self, event: Ended) -> None:
        task = self._task_of(event.error.room)
        # once the cache is here, the rank that computed it may go
        if task is not None and task.generation is None:
            self._fail(task, from_registry(event.error))

    # --- its KV cache

    def _fetch_next(self) -> None:
        """Ask for the KV caches of as many requests as the batch has places for."""
        while self._queue and len(self._running) + self._fetching < self._settings.max_batch:
            task = self._queue.popleft()
            assert task.assignment is not None
            found = task.assignment
            instance = self.registry.decode.instance(found.instance)
            endpoints = instance.endpoints(found.dp_rank) if instance is not None else ()
            if instance is None or not endpoints:
                self._fail(task, from_registry(PrefillLost(found.instance, found.room, found.dp_rank, found.epoch)))
            elif not self._refuse_misfit(task, instance):
                self._fetching += 1
                task.begin("kv_transfer")
                task.peer = self._transfer.ask(endpoints[0].ip, endpoints[0].port, found.room)

    def _refuse_misfit(self, task: _Task, instance: PrefillInstance | None) -> bool:
        error = misfit(self._card, task.work.room, instance) if instance else None
        if error:
            self._fail(task, error)
        return error is not None

    def _on_refusal(self, refusal: Refusal) -> None:
        task = self._task_of(refusal.room)
        if task is not None and task.peer and task.generation is None:
            self._fail(task, RequestFailed(500, refusal.kind, refusal.message, room=refusal.room))

    def _on_arrival(self, arrival: Arrival) -> None:
        answer = arrival.answer
        task = self._task_of(answer.room)
        if task is None or not task.peer or task.generation is not None:
            return
        try:
            cache = KVCache.from_bytes(arrival.data, self._layout, len(task.work.input_ids))
        except KVFormatError as error:
            self._fail(task, RequestFailed(500, "KVFormatError", str(error), room=answer.room))
            return
        self._fetching -= 1
        self._transfer.ack(task.peer, answer.room)
        self.registry.decode.done(task.work.instance, answer.room)
        task.generation = Generation(task.work, self._card.end_tokens, self._tokenizer, answer.seed)
        task.generation.push(answer.first_token, answer.first_logprob)
        if not task.generation.finished:
            self._running.join(task.generation, cache)
        kv = {"kv_bytes": len(arrival.data), "kv_seconds": (time.monotonic_ns() - task.began_ns) / 1e9}
        if self._spans:
            _trace(self._spans, task, kv_bytes=len(arrival.data))
        task.begin("decode")
        self._report(task.generation, self._account(task, answer) | kv)
        _log.debug("fetched room=%d kv_bytes=%d request=%s", answer.room, len(arrival.data), task.work.request_id)

    def _account(self, task: _Task, answer: Answer) -> dict[str, Any]:
        """How the request found its KV cache."""
        found = task.assignment
        assert found is not None
        comparable = answer.registered_ns > 0 and answer.boot_id == self._boot_id
        return {
            "bootstrap_room": found.room,
            "instance": found.instance,
            "dp_rank": found.dp_rank,
            "epoch": found.epoch,
            "revision": found.revision,
            "lease_id": found.lease_id,
            "source": found.source,
            "register_to_resolved_ms": (task.resolved_ns - answer.registered_ns) / 1e6 if comparable else None,
        }

    # --- generating

    def _step(self) -> None:
        for generation in self._running.step():
            self._report(generation)

    def _report(self, generation: Generation, meta: dict[str, Any] | None = None) -> None:
        """Notify the front of what is new, and let go of a request that has ended."""
        self._link.send(generation.take(meta or {}))
        if generation.finished:
            task = self._tasks[generation.work.id]
            if self._spans:
                _trace(self._spans, task, tokens=generation.count)
            self._forget(task)

    # --- ends without a result

    def _fail(self, task: _Task, error: RequestFailed) -> None:
        if task.generation is None:
            self.registry.decode.done(task.work.instance, task.work.room)
            if task.peer:
                self._fetching -= 1
                self._transfer.cancel(task.peer, task.work.room, str(error)[:500])
            elif task in self._queue:
                self._queue.remove(task)
        else:
            self._running.leave(task.generation)
        if self._spans and task.step:
            _trace(self._spans, task, error.type)
        self._forget(task)
        self._link.fail(task.work.id, error)
        _log.debug("failed room=%d type=%s request=%s", task.work.room, error.type, task.work.request_id)

    def _expire(self) -> None:
        now = time.monotonic()
        if now < self._next_expiry:
            return
        self._next_expiry = now + _EXPIRY_SECONDS
        for task in list(self._tasks.values()):
            room = task.work.room
            if task.generation is None and task.kv_deadline < now:
                where = f"from {task.peer}" if task.peer else "of a free place in the batch or of its prefill rank"
                message = f"no KV cache {where} within {self._settings.kv_timeout_seconds:g} s"
                self._fail(task, RequestFailed(504, "KVTimeout", message, room=room))
            elif task.deadline < now:
                message = f"not finished within {self._settings.request_timeout_seconds:g} s"
                self._fail(task, RequestFailed(504, "RequestTimeout", message, room=room))

    def _task_of(self, room: int) -> _Task | None:
        return self._tasks.get(self._id_of.get(room, -1))

    def _forget(self, task: _Task) -> None:
        del self._tasks[task.work.id]
        del self._id_of[task.work.room]


def _trace(spans: Spans, task: _Task, error: str = "", **facts: int | str) -> None:
    """The step that the request is at has ended."""
    found = task.assignment
    place: dict[str, int | str] = {"instance": task.work.instance}
    if found is not None:
        place = {"instance": found.instance, "dp_rank": found.dp_rank, "revision": found.revision}
    spans.record(task.step, task.work, task.began_ns, error, **place, **facts)
