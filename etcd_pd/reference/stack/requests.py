"""Requests to the router, as SGLang's clients send them, and what the answers say of how they were served."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Prompt:
    """One request of the demo.

    Attributes:
        number: its place in the list, from 1.
        text: the prompt.
        max_new_tokens: how many tokens to generate at most.
        streamed: whether the answer is asked for token by token.
    """

    number: int
    text: str
    max_new_tokens: int
    streamed: bool


@dataclass(frozen=True)
class Answer:
    """What came back; the fields from ``room`` on are the decode instance's account of it.

    Attributes:
        prompt: what was asked.
        token_ids: generated tokens.
        prompt_tokens: length of the prompt in tokens.
        room: the bootstrap room that the router drew.
        instance: the prefill instance.
        dp_rank: the rank that decode learned.
        epoch: epoch of that rank.
        revision: etcd revision at which decode's agent saw the room.
        lease_id: lease of the room's key.
        source: how the rank was learned; ``registry`` is the watch.
        register_to_resolved_ms: from the prefill rank's register() to the decode rank's knowing it.
        ttft_ms: from decode's receiving the request to its first token.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    prompt_tokens: int
    room: int
    instance: str
    dp_rank: int
    epoch: int
    revision: int
    lease_id: int
    source: str
    register_to_resolved_ms: float | None
    ttft_ms: float | None


class RequestError(Exception):
    """A request was not served: the status and body that the client got."""


async def generate(session: aiohttp.ClientSession, url: str, prompt: Prompt) -> Answer:
    """Send one prompt to ``/generate``.

    Raises:
        RequestError: it was not served.
    """
    body = {
        "text": prompt.text,
        "sampling_params": {"max_new_tokens": prompt.max_new_tokens, "temperature": 0},
        "stream": prompt.streamed,
    }
    try:
        async with session.post(f"{url}/generate", json=body) as response:
            if response.status != 200:
                raise RequestError(f"HTTP {response.status}: {(await response.text())[:300]}")
            result = await _last_event(response) if prompt.streamed else await response.json()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise RequestError(f"{type(error).__name__}: {error}") from error
    return _answer(prompt, result)


async def _last_event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The last event of a stream; each holds everything so far."""
    last: dict[str, Any] = {}
    async for line in response.content:
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            return last
        if data:
            last = json.loads(data)
            if "error" in last:
                raise RequestError(f"error in the stream: {last['error']}")
    raise RequestError("the stream broke off")


def _answer(prompt: Prompt, result: dict[str, Any]) -> Answer:
    try:
        meta = result["meta_info"]
        told = meta["etcd_pd"]
        return Answer(
            prompt=prompt,
            token_ids=tuple(result["output_ids"]),
            prompt_tokens=meta["prompt_tokens"],
            room=told["bootstrap_room"],
            instance=told["instance"],
            dp_rank=told["dp_rank"],
            epoch=told["epoch"],
            revision=told["revision"],
            lease_id=told["lease_id"],
            source=told["source"],
            register_to_resolved_ms=told["register_to_resolved_ms"],
            ttft_ms=told["ttft_ms"],
        )
    except (KeyError, TypeError) as error:
        raise RequestError(f"the answer lacks {error}: {json.dumps(result)[:300]}") from error
