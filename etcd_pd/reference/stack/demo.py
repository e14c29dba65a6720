"""Real prompts through the running stack, and a check of every answer against etcd and against the plain model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp

from .etcd_gateway import Gateway
from .observer import RoomObserver, SeenRoom
from .plan import Addresses
from .prompts import MAX_NEW_TOKENS, mixed_prompts
from .requests import Answer, Prompt, RequestError, generate

#: How many requests are in flight at once.
CONCURRENCY = 8
#: Every so many-th request is streamed.
STREAM_EVERY = 3
REQUEST_SECONDS = 120.0
#: How long the last releases may take to reach etcd.
RELEASE_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """Everything that happened.

    Attributes:
        prompts: what was asked, in order.
        answers: what came back, by the prompt's number.
        errors: why nothing came back, by the prompt's number.
        seen: what etcd saw of each room.
        keys_left: room keys that were still there afterwards.
    """

    prompts: list[Prompt]
    answers: dict[int, Answer]
    errors: dict[int, str]
    seen: dict[int, SeenRoom]
    keys_left: list[str]


def make_prompts(count: int) -> list[Prompt]:
    """The demo's requests: mixed lengths, some of them streamed."""
    return [
        Prompt(number, text, MAX_NEW_TOKENS[number % len(MAX_NEW_TOKENS)], streamed=number % STREAM_EVERY == 0)
        for number, text in enumerate(mixed_prompts(count), start=1)
    ]


async def send_all(at: Addresses, prompts: list[Prompt], advance: Callable[[], None]) -> Outcome:
    """Send the prompts through the router, several at once, while a watch of its own records the rooms."""
    answers: dict[int, Answer] = {}
    errors: dict[int, str] = {}
    free = asyncio.Semaphore(CONCURRENCY)

    async def send(prompt: Prompt) -> None:
        async with free:
            try:
                answers[prompt.number] = await generate(session, at.router, prompt)
            except RequestError as error:
                errors[prompt.number] = str(error)
            advance()

    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with (
        Gateway(at.etcd[0]) as gateway,
        RoomObserver(gateway, at.root) as observer,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        await asyncio.gather(*map(send, prompts))
        keys_left = await observer.wait_until_empty(RELEASE_SECONDS)
        return Outcome(prompts, answers, errors, observer.rooms, keys_left)


def find_problems(outcome: Outcome) -> list[str]:
    """What is wrong with the run, in words; nothing where every rule held."""
    problems = [f"request {number}: {error}" for number, error in sorted(outcome.errors.items())]
    for number, answer in sorted(outcome.answers.items()):
        wrong = _compare(answer, outcome.seen.get(answer.room))
        problems += [f"request {number}, room {answer.room}: {what}" for what in wrong]
    problems += [f"{key} was left behind" for key in outcome.keys_left]
    rooms = [answer.room for answer in outcome.answers.values()]
    if len(set(rooms)) < len(rooms):
        problems.append("two requests had the same room")
    return problems


def _compare(answer: Answer, seen: SeenRoom | None) -> list[str]:
    if answer.source != "registry":
        return [f"its rank came from {answer.source}, not from the registry"]
    if seen is None:
        return ["etcd never had a key for it"]
    told = {
        "instance": answer.instance,
        "dp_rank": answer.dp_rank,
        "epoch": answer.epoch,
        "revision": answer.revision,
        "lease": answer.lease_id,
    }
    wrong = [
        f"{name} {value} in the answer, {getattr(seen, name)} in etcd"
        for name, value in told.items()
        if value != getattr(seen, name)
    ]
    if not seen.lease_lived:
        wrong.append("its key had no living lease")
    return wrong


@dataclass(frozen=True)
class Comparison:
    """How the answers compare with the same model without disaggregation.

    Attributes:
        equal: how many answers are equal, token by token.
        different: numbers of the requests whose answers are not.
        smallest_margin: smallest distance between the two likeliest tokens' logits that a choice was made by.
    """

    equal: int
    different: tuple[int, ...]
    smallest_margin: float


def compare_with_reference(model_path: str, answers: Iterable[Answer], advance: Callable[[], None]) -> Comparison:
    """Generate every answer again in this process: one prompt at a time, nothing moved, nothing batched."""
    from ..engine import tiny
    from ..engine.card import go_offline, read_card

    go_offline()
    from ..engine.messages import Sampling
    from ..engine.model import Model
    from ..engine.reference import generate as generate_plainly
    from ..engine.settings import PrefillSettings
    from ..engine.text import Tokenizer

    path = model_path or tiny.ensure()
    model, tokenizer, ends = Model(path), Tokenizer(path), read_card(path, PrefillSettings()).end_tokens
    different, equal, smallest = [], 0, float("inf")
    for answer in answers:
        sampling = Sampling(max_new_tokens=answer.prompt.max_new_tokens)
        expected = generate_plainly(model, tokenizer.encode(answer.prompt.text), sampling, ends)
        smallest = min(smallest, expected.smallest_margin)
        if tuple(expected.token_ids) == answer.token_ids:
            equal += 1
        else:
            different.append(answer.prompt.number)
        advance()
    return Comparison(equal, tuple(different), smallest)


def load_by_rank(answers: Sequence[Answer]) -> dict[int, tuple[int, int]]:
    """Requests and prompt tokens that each rank took."""
    load: dict[int, tuple[int, int]] = {}
    for answer in sorted(answers, key=lambda answer: answer.dp_rank):
        requests, tokens = load.get(answer.dp_rank, (0, 0))
        load[answer.dp_rank] = requests + 1, tokens + answer.prompt_tokens
    return load
