"""What the HTTP front and its rank processes say to each other: msgpack over one ZeroMQ socket pair per instance."""

from __future__ import annotations

from typing import Any

import msgspec

from .card import ModelCard


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen and when a request ends; checked by :mod:`.requests`.

    Attributes:
        max_new_tokens: most tokens to generate.
        temperature: 0 takes the most likely token.
        top_p: smallest set of tokens whose probability reaches this is kept.
        top_k: how many most likely tokens are kept; -1 keeps all.
        seed: makes sampled tokens repeatable; None draws one.
        stop: texts that end the request; they are not part of its text.
        stop_token_ids: tokens that end it.
        ignore_eos: go on after the model's own end token.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class Work(msgspec.Struct, frozen=True, kw_only=True, tag="work"):
    """Front to rank: serve this request.

    Attributes:
        id: the front's name for it.
        room: its bootstrap room.
        instance: bootstrap address of the prefill instance, ``host:port``.
        prefill_dp_rank: the prefill rank that the request itself names to decode, or None.
        routed_dp_rank: the rank that the request names to the instance which routes it, or None.
        input_ids: the prompt.
        sampling: how to go on.
        logprobs: whether each token's log probability is wanted.
        request_id: what the router calls the request, for the log; empty where it does not.
        traceparent: W3C trace context that the rank's spans belong below; empty where the front traces nothing.
    """

    id: int
    room: int
    instance: str
    input_ids: list[int]
    sampling: Sampling
    prefill_dp_rank: int | None = None
    routed_dp_rank: int | None = None
    logprobs: bool = False
    request_id: str = ""
    traceparent: str = ""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Front to rank: nobody waits for this request any more."""

    id: int
    reason: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Front to rank: end. What is still in flight fails."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Front to rank: no new requests will come."""


class Pass(msgspec.Struct, frozen=True, kw_only=True, tag="pass"):
    """Front to rank: a forward pass of all ranks starts now; only where ranks run in lock-step.

    Attributes:
        number: passes are counted from 0.
        tokens: what each rank computes in it, by ``dp_rank``, out of what it brought.
        seconds: how long it lasts, for every rank.
    """

    number: int
    tokens: tuple[int, ...]
    seconds: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Rank to front: the model is loaded."""

    dp_rank: int
    card: ModelCard
    kv_port: int = 0


class Announced(msgspec.Struct, frozen=True, kw_only=True, tag="announced"):
    """Rank to front: the rank is in etcd under this epoch; 0 when it no longer is."""

    dp_rank: int
    epoch: int


class Fatal(msgspec.Struct, frozen=True, kw_only=True, tag="fatal"):
    """Rank to front: the rank cannot work, ever; the instance must end."""

    dp_rank: int
    message: str


class Began(msgspec.Struct, frozen=True, tag="began"):
    """Rank to front: the request's computation has begun."""

    id: int


class Bring(msgspec.Struct, frozen=True, kw_only=True, tag="bring"):
    """Rank to front: what the rank can compute in a forward pass, if that starts now; a later one replaces it."""

    number: int
    tokens: int


class Update(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """Rank to front: what is new about a request.

    Attributes:
        id: the request.
        token_ids: tokens since the last update.
        text: their text, as far as it is certain.
        logprobs: one log probability per token, where asked for.
        finish_reason: why the request ended, None while it goes on.
        meta: facts about how the request was served; a later update adds to an earlier one's.
    """

    id: int
    token_ids: list[int] = []
    text: str = ""
    logprobs: list[float] = []
    finish_reason: dict[str, Any] | None = None
    meta: dict[str, Any] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Rank to front: the request ended without a result."""

    id: int
    status: int
    kind: str
    message: str
    details: dict[str, Any] = {}


class Agent(msgspec.Struct, frozen=True, tag="agent"):
    """Rank to front: whether the node's agent is there."""

    present: bool


class Draining(msgspec.Struct, frozen=True, tag="draining"):
    """Rank to front: the node is being taken out of service; the rank takes no new rooms."""


class Met(msgspec.Struct, frozen=True, tag="met"):
    """Decode's rank to front: the registry knows a prefill instance at this bootstrap address."""

    address: str


ToRank = Work | Abort | Drain | Stop | Pass
ToFront = Ready | Announced | Fatal | Agent | Draining | Met | Began | Bring | Update | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_rank = msgspec.msgpack.Decoder(ToRank).decode
decode_to_front = msgspec.msgpack.Decoder(ToFront).decode
