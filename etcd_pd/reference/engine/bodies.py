"""JSON bodies of the generation routes: which fields exist, and of which type. What they mean is in :mod:`.requests`.

A field that is not listed is ignored where it is harmless (routers add many). One that would change the output and is
not implemented is refused, unless it has its neutral value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from .errors import BadRequest, ModelUnknown

_Body = TypeVar("_Body", bound=msgspec.Struct)
_OpenAI = TypeVar("_OpenAI", bound="_OpenAIBody")

#: OpenAI's own, where a request of a ``/v1`` route says nothing. ``/generate`` is greedy then.
DEFAULT_TEMPERATURE = 1.0
#: What SGLang's router writes for a request that names no model.
NO_MODEL = "unknown"

#: Longest list of stop texts or stop tokens.
_MAX_STOPS = 64
_NEUTRAL_SAMPLING: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "min_new_tokens": 0,
    "min_p": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "skip_special_tokens": True,
    "no_stop_trim": False,
    "logit_bias": {},
    "regex": None,
    "json_schema": None,
    "ebnf": None,
    "structural_tag": None,
    "stop_regex": None,
}
_NEUTRAL_GENERATE: dict[str, Any] = {
    "logprob_start_len": -1,
    "top_logprobs_num": 0,
    "return_hidden_states": False,
    "image_data": [],
    "audio_data": [],
    "video_data": [],
    "input_embeds": None,
    "token_ids_logprob": None,
    "lora_path": "",
    "session_params": None,
}
_NEUTRAL_OPENAI: dict[str, Any] = {
    **_NEUTRAL_SAMPLING,
    "echo": False,
    "suffix": "",
    "logprobs": False,
    "top_logprobs": 0,
    "tools": [],
    "response_format": {"type": "text"},
}


class SamplingBody(msgspec.Struct, kw_only=True):
    """SGLang's ``sampling_params``."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    sampling_seed: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None

    def check(self) -> None:
        """Check every value by itself.

        Raises:
            BadRequest: one is out of its range.
        """
        _check(self.max_new_tokens, "max_new_tokens", 0, None)
        _check(self.temperature, "temperature", 0, 100)
        _check(self.top_p, "top_p", 0, 1)
        if self.top_p == 0:
            raise BadRequest("top_p", "must be above 0")
        if self.top_k is not None and self.top_k != -1:
            _check(self.top_k, "top_k", 1, 2**31)
        for name in ("sampling_seed", "seed"):
            _check(getattr(self, name), name, -(2**63), 2**63 - 1)
        if any(not stop for stop in self.stops()):
            raise BadRequest("stop", "must hold no empty text")
        if len(self.stops()) > _MAX_STOPS or len(self.stop_token_ids or ()) > _MAX_STOPS:
            raise BadRequest("stop", f"must hold at most {_MAX_STOPS} entries")
        for token_id in self.stop_token_ids or ():
            _check(token_id, "stop_token_ids", 0, 2**31)

    def stops(self) -> tuple[str, ...]:
        """The stop texts, however they were spelled."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class _Routed(msgspec.Struct, kw_only=True):
    """What a router adds."""

    bootstrap_host: str | list[str] | None = None
    bootstrap_port: int | list[int] | None = None
    bootstrap_room: int | list[int] | None = None
    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None
    disagg_prefill_dp_rank: int | None = None
    stream: bool | None = None
    return_logprob: bool | None = None


class GenerateBody(_Routed, kw_only=True):
    """``POST /generate``."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: SamplingBody | None = None
    rid: str | list[str] | None = None


class _OpenAIBody(_Routed, kw_only=True):
    model: str | None = None
    max_tokens: int | None = None
    stream_options: dict[str, Any] | None = None


class CompletionBody(_OpenAIBody, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]


class Message(msgspec.Struct):
    """One message of a chat. ``content`` may be a list of text parts."""

    role: str
    content: str | list[dict[str, str]] | None = None


class ChatBody(_OpenAIBody, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None


def parse_generate(body: bytes) -> GenerateBody:
    """Read the body of ``/generate``.

    Raises:
        BadRequest: it is no JSON object, a field has the wrong type, or asks for what this engine cannot do.
    """
    data = _load(body)
    _refuse_unimplemented(data, _NEUTRAL_GENERATE, "")
    parsed = _convert(data, GenerateBody)
    _refuse_unimplemented(data.get("sampling_params") or {}, _NEUTRAL_SAMPLING, "sampling_params.")
    if parsed.sampling_params is not None:
        parsed.sampling_params.check()
    return parsed


def parse_openai(body: bytes, cls: type[_OpenAI], served: str) -> tuple[_OpenAI, SamplingBody]:
    """Read the body of a ``/v1`` route, where sampling parameters are fields like any other, with OpenAI's defaults.

    Args:
        served: the name of the model; empty: any name will do.

    Raises:
        ModelUnknown: it names another model.
        BadRequest: as in :func:`parse_generate`.
    """
    data = _load(body)
    _refuse_unimplemented(data, _NEUTRAL_OPENAI, "")
    sampling, parsed = _convert(data, SamplingBody), _convert(data, cls)
    if served and parsed.model is not None and parsed.model not in (served, NO_MODEL):
        raise ModelUnknown(parsed.model, served)
    sampling.check()
    if sampling.temperature is None:
        sampling.temperature = DEFAULT_TEMPERATURE
    for name in ("max_tokens", "max_completion_tokens"):
        _check(getattr(parsed, name, None), name, 0, None)
    return parsed, sampling


def _load(body: bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest("body", f"must be JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest("body", "must be a JSON object")
    return data


def _convert(data: dict[str, Any], cls: type[_Body]) -> _Body:
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        missing = re.search(r"required field `(\w+)`", message)
        field = path.strip("`").removeprefix("$").removeprefix(".")
        raise BadRequest(missing[1] if missing else field or "body", message) from None


def _refuse_unimplemented(data: Mapping[str, Any], neutral: Mapping[str, Any], prefix: str) -> None:
    for name, harmless in neutral.items():
        value = data.get(name)
        # 0 == False and 1 == True in Python, so the type counts too
        if value is None or (value == harmless and type(value) in (type(harmless), float)):
            continue
        allowed = "leave it out" if harmless is None else f"leave it out or at {harmless!r}"
        raise BadRequest(prefix + name, f"is not implemented; {allowed}")


def _check(value: float | None, name: str, low: float, high: float | None) -> None:
    if value is not None and not (low <= value and (high is None or value <= high)):
        span = f"at least {low:g}" if high is None else f"in {low:g}..{high:g}"
        raise BadRequest(name, f"must be {span}, not {value!r:.40}")
