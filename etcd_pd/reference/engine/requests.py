"""What a client asked for, checked to the last field before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etcd_pd import ConfigError
from etcd_pd.config import bracketed
from etcd_pd.wire.limits import check_name, check_room

from .bodies import ChatBody, CompletionBody, SamplingBody, parse_generate, parse_openai
from .errors import BadRequest
from .messages import Sampling
from .settings import FOLLOW_BOOTSTRAP_ROOM
from .text import Tokenizer, TooManyTokens

PREFILL, DECODE = "prefill", "decode"
#: SGLang's and OpenAI's own defaults for how much is generated.
_DEFAULT_NEW_TOKENS, _DEFAULT_COMPLETION_TOKENS = 128, 16


@dataclass(frozen=True)
class Limits:
    """What the instance can serve.

    Attributes:
        role: ``prefill`` or ``decode``.
        vocabulary: token ids are below this.
        context: most tokens of prompt and answer together.
        dp_size: ranks of this instance.
        policy: its DP dispatch policy.
        addresses: the bootstrap addresses that mean this instance; empty on decode, which takes any.
        model: the name of its model; empty: any name will do.
    """

    role: str
    vocabulary: int
    context: int
    dp_size: int
    policy: str
    addresses: tuple[str, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class Item:
    """One prompt of a request.

    Attributes:
        room: its bootstrap room.
        instance: bootstrap address of the prefill instance, ``host:port``.
        input_ids: the prompt.
        sampling: how to go on.
        logprobs: whether log probabilities are wanted.
        routed_dp_rank: the rank of this instance that the request names, or None.
        prefill_dp_rank: the prefill rank that the request names for decode, or None.
    """

    room: int
    instance: str
    input_ids: list[int]
    sampling: Sampling
    logprobs: bool
    routed_dp_rank: int | None
    prefill_dp_rank: int | None


@dataclass(frozen=True)
class Plan:
    """A checked request.

    Attributes:
        items: its prompts, each with a room of its own.
        batch: whether it was asked as a list, so that the answer is one.
        stream: whether tokens are wanted as they come.
        rids: the client's own names for the items; empty where it gave none.
        include_usage: whether a stream ends with a count of tokens (``/v1`` routes).
    """

    items: tuple[Item, ...]
    batch: bool
    stream: bool
    rids: tuple[str, ...] = ()
    include_usage: bool = False


def plan_generate(body: bytes, tokenizer: Tokenizer, limits: Limits) -> Plan:
    """Check the body of ``POST /generate``.

    Raises:
        BadRequest: naming the field and the rule that it breaks.
    """
    request = parse_generate(body)
    if (request.text is None) == (request.input_ids is None):
        raise BadRequest("text", "exactly one of text and input_ids must be given")
    name = "text" if request.input_ids is None else "input_ids"
    given = request.text if request.input_ids is None else request.input_ids
    prompts, batch = _prompts(name, given, tokenizer, limits)
    rids = (request.rid,) if isinstance(request.rid, str) else tuple(request.rid or ())
    if rids and len(rids) != len(prompts):
        raise BadRequest("rid", f"must name each of the {len(prompts)} prompts")
    sampling = request.sampling_params or SamplingBody()
    length = _Length(_DEFAULT_NEW_TOKENS, {"max_new_tokens": sampling.max_new_tokens})
    items = _items(name, prompts, batch, request, sampling, length, limits)
    return Plan(items, batch, bool(request.stream), rids)


def plan_completion(body: bytes, tokenizer: Tokenizer, limits: Limits) -> Plan:
    """Check the body of ``POST /v1/completions``; raises as :func:`plan_generate` does."""
    request, sampling = parse_openai(body, CompletionBody, limits.model)
    prompts, batch = _prompts("prompt", request.prompt, tokenizer, limits)
    length = _Length(
        _DEFAULT_COMPLETION_TOKENS, {"max_tokens": request.max_tokens, "max_new_tokens": sampling.max_new_tokens}
    )
    items = _items("prompt", prompts, batch, request, sampling, length, limits)
    return Plan(items, batch, bool(request.stream), (), _include_usage(request.stream_options))


def plan_chat(body: bytes, tokenizer: Tokenizer, limits: Limits) -> Plan:
    """Check the body of ``POST /v1/chat/completions``; raises as :func:`plan_generate` does."""
    request, sampling = parse_openai(body, ChatBody, limits.model)
    if not request.messages:
        raise BadRequest("messages", "must not be empty")
    messages = [{"role": message.role, "content": _plain(message.content)} for message in request.messages]
    prompts = [_encode("messages", tokenizer.render_chat(messages), tokenizer, limits, special=False)]
    names = {"max_completion_tokens": request.max_completion_tokens, "max_tokens": request.max_tokens}
    length = _Length(_DEFAULT_NEW_TOKENS, {**names, "max_new_tokens": sampling.max_new_tokens})
    items = _items("messages", prompts, False, request, sampling, length, limits)
    return Plan(items, False, bool(request.stream), (), _include_usage(request.stream_options))


@dataclass(frozen=True)
class _Length:
    """How much is to be generated: the spellings that the route knows, in the order in which they count."""

    default: int
    spellings: dict[str, int | None]

    def choose(self, room_left: int) -> int:
        """The number of tokens; ``room_left`` is what the model's context has left."""
        for field, wanted in self.spellings.items():
            if wanted is not None and wanted > room_left:
                raise BadRequest(field, f"must be at most {room_left} after this prompt, not {wanted!r:.40}")
            if wanted is not None:
                return wanted
        return min(self.default, room_left)


def _encode(field: str, text: str, tokenizer: Tokenizer, limits: Limits, special: bool = True) -> list[int]:
    """The token ids of a prompt."""
    try:
        return tokenizer.encode(text, special, limits.context)
    except TooManyTokens as error:
        raise _too_long(field, limits, str(error)) from None


def _too_long(field: str, limits: Limits, tokens: str) -> BadRequest:
    return BadRequest(field, f"must have fewer tokens than the model's context of {limits.context}, not {tokens}")


def _prompts(field: str, given: Any, tokenizer: Tokenizer, limits: Limits) -> tuple[list[list[int]], bool]:
    """The token ids of each prompt, and whether there was a list of prompts."""
    if isinstance(given, str):
        return [_encode(field, given, tokenizer, limits)], False
    kinds = {type(one) for one in given}
    if kinds == {int}:
        return [list(given)], False
    if kinds == {list}:
        return [list(ids) for ids in given], True
    if kinds == {str}:
        return [_encode(field, text, tokenizer, limits) for text in given], True
    raise BadRequest(field, "must hold token ids only, or prompts only" if kinds else "must not be empty")


def _items(
    field: str,
    prompts: Sequence[list[int]],
    batch: bool,
    routed: Any,
    sampling: SamplingBody,
    length: _Length,
    limits: Limits,
) -> tuple[Item, ...]:
    rooms = _one_each("bootstrap_room", routed.bootstrap_room, len(prompts), batch)
    hosts = _one_each("bootstrap_host", routed.bootstrap_host, len(prompts), batch)
    ports = _one_each("bootstrap_port", routed.bootstrap_port, len(prompts), batch)
    if len(set(rooms)) != len(rooms):
        raise BadRequest("bootstrap_room", "must be different for each prompt")
    items = []
    for ids, room, host, port in zip(prompts, rooms, hosts, ports, strict=True):
        _check_prompt(field, ids, limits)
        _check_room(room)
        named, prefill_named = _check_ranks(routed, room, limits)
        items.append(
            Item(
                room=room,
                instance=_check_instance(host, port, limits),
                input_ids=ids,
                sampling=_sampling(sampling, length.choose(limits.context - len(ids))),
                logprobs=bool(routed.return_logprob),
                routed_dp_rank=named,
                prefill_dp_rank=prefill_named,
            )
        )
    return tuple(items)


def _one_each(field: str, given: Any, count: int, batch: bool) -> list[Any]:
    """One value for each prompt of a batch; a host or a port may be given once for all of them."""
    if given is None:
        raise BadRequest(field, "is missing; a router for disaggregated serving sends it")
    if not isinstance(given, list):
        if batch and field == "bootstrap_room":
            raise BadRequest(field, "must be a list with one room for each prompt")
        return [given] * count
    if not batch or len(given) != count:
        raise BadRequest(field, f"must have one value for each prompt: {count}, not {len(given)}")
    return given


def _check_prompt(field: str, ids: Sequence[int], limits: Limits) -> None:
    if not ids:
        raise BadRequest(field, "must not be empty")
    if len(ids) >= limits.context:
        raise _too_long(field, limits, str(len(ids)))
    outside = next((one for one in ids if not 0 <= one < limits.vocabulary), None)
    if outside is not None:
        raise BadRequest(field, f"token ids must be in 0..{limits.vocabulary - 1}, not {outside!r:.40}")


def _check_room(room: object) -> None:
    try:
        check_room(room)
    except ConfigError as error:
        raise BadRequest(error.field, error.rule) from None


def _check_instance(host: str, port: int, limits: Limits) -> str:
    if not 1 <= port <= 65535:
        raise BadRequest("bootstrap_port", f"must be in 1..65535, not {port!r:.40}")
    instance = f"{bracketed(host)}:{port}"
    try:
        check_name("bootstrap_host", host)
        check_name("bootstrap_host", instance)
    except ConfigError as error:
        raise BadRequest(error.field, error.rule) from None
    if limits.addresses and instance not in limits.addresses:
        raise BadRequest("bootstrap_host", f"this instance is {' or '.join(limits.addresses)}, not {instance}")
    return instance


def _check_ranks(routed: Any, room: int, limits: Limits) -> tuple[int | None, int | None]:
    """The rank of this instance and the prefill rank that the request names."""
    prefill_named: int | None = routed.disagg_prefill_dp_rank
    names = ["routed_dp_rank", "data_parallel_rank"] + ["disagg_prefill_dp_rank"] * (limits.role == PREFILL)
    given = {name: getattr(routed, name) for name in names if getattr(routed, name) is not None}
    if len(set(given.values())) > 1:
        raise BadRequest(next(iter(given)), f"{' and '.join(given)} must agree")
    if prefill_named is not None and prefill_named < 0:
        raise BadRequest("disagg_prefill_dp_rank", f"must not be negative, not {prefill_named}")
    if not given:
        return None, prefill_named
    name, rank = next(iter(given.items()))
    # a router sends both legs the same fields: they mean prefill's ranks where decode has nothing to choose
    if limits.role == DECODE and limits.dp_size == 1 and rank >= 0:
        return rank, prefill_named
    if not 0 <= rank < limits.dp_size:
        raise BadRequest(name, f"must be in 0..{limits.dp_size - 1}, not {rank}")
    computed = room % limits.dp_size
    if limits.policy == FOLLOW_BOOTSTRAP_ROOM and rank != computed and prefill_named is None:
        raise BadRequest(name, f"must be bootstrap_room % dp_size = {computed} under {FOLLOW_BOOTSTRAP_ROOM}")
    return rank, prefill_named


def _sampling(body: SamplingBody, max_new_tokens: int) -> Sampling:
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=-1 if body.top_k is None else body.top_k,
        seed=body.seed if body.sampling_seed is None else body.sampling_seed,
        stop=body.stops(),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
    )


def _plain(content: str | list[dict[str, str]] | None) -> str:
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            raise BadRequest("messages", "content parts must be of type text")
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _include_usage(stream_options: dict[str, Any] | None) -> bool:
    return bool((stream_options or {}).get("include_usage"))
