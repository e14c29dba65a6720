"""A load on the router whose every answer is counted and judged."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import aiohttp

NEW_TOKENS = 8
TEXTS = [f"The harbour wakes before the town does, for the {number}th time." for number in range(1, 9)]
#: A request that has no answer by then hangs, seconds.
HANGS = 60.0
#: Where the fault took an engine: an error within ten times two seconds is one in time.
ENGINE_LOST = 20.0
#: Where it took etcd: the router tries five times, and each registration waits registrationTimeoutSeconds for it, 10 s.
ETCD_LOST = 5 * 10.0 + 5.0


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        sent: when, in seconds after the load began.
        seconds: how long it took.
        status: of HTTP; 0 where there was none.
        tokens: those that were generated.
        error: what was said instead.
    """

    sent: float
    seconds: float
    status: int
    tokens: tuple[int, ...] = ()
    error: str = ""


class Load:
    """Requests at a steady rate from a thread: ``with Load(url, expected) as load: ...``, then ``load.verdict()``.

    Args:
        url: the router's.
        expected: the right continuation of each of TEXTS.
        rate: requests a second.
        again: whether to send a request again whose connection broke, as when the router itself is replaced.
    """

    def __init__(self, url: str, expected: Sequence[Sequence[int]], rate: float = 4.0, *, again: bool = False) -> None:
        self._url, self._expected, self._rate, self._again = f"{url}/generate", expected, rate, again
        self.broken = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.answers: list[tuple[int, Answer]] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()
        print(f"load: {self.summary()}")

    async def _run(self) -> None:
        began, tasks = time.monotonic(), list[asyncio.Task[None]]()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            while not self._ends.is_set():
                tasks.append(asyncio.create_task(self._ask(session, len(tasks) % len(TEXTS), began)))
                await asyncio.sleep(max(0.0, began + len(tasks) / self._rate - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession, number: int, began: float) -> None:
        sent = time.monotonic()
        status, text = await self._post(session, number)
        while self._again and status == 0 and time.monotonic() < sent + HANGS:
            self.broken += 1
            await asyncio.sleep(0.2)
            status, text = await self._post(session, number)
        tokens = tuple(json.loads(text)["output_ids"]) if status == 200 else ()
        error = "" if status == 200 else text[:300]
        self.answers.append((number, Answer(sent - began, time.monotonic() - sent, status, tokens, error)))

    async def _post(self, session: aiohttp.ClientSession, number: int) -> tuple[int, str]:
        try:
            timeout = aiohttp.ClientTimeout(total=HANGS)
            async with session.post(self._url, json=body(TEXTS[number]), timeout=timeout) as reply:
                return reply.status, await reply.text()
        except (aiohttp.ClientError, asyncio.TimeoutError) as exc:
            return 0, f"{type(exc).__name__}: {exc}"

    @property
    def lasted(self) -> float:
        """When the last of the requests that have ended was sent, seconds after the first."""
        return max((answer.sent for _, answer in self.answers), default=0.0)

    def wrong(self, errors_within: float = 0.0, also: Sequence[Sequence[int]] = ()) -> list[str]:
        """The requests that ended neither with the right tokens nor, where errors may be, with one of 5xx in time.

        Args:
            errors_within: the time in which an error is right, seconds.
            also: what another model makes of each of TEXTS, which is right too.
        """
        right = (self._expected, also) if also else (self._expected,)
        return [
            f"{answer.sent:.1f} s: text {number}, {answer.status} after {answer.seconds:.1f} s {answer.error}"
            for number, answer in self.answers
            if not (
                list(answer.tokens) in [list(model[number]) for model in right]
                if answer.status == 200
                else 500 <= answer.status < 600 and answer.seconds < errors_within
            )
        ]

    def summary(self) -> str:
        """How many answers of which status, and how long the right ones took."""
        counts = Counter(answer.status for _, answer in self.answers)
        took = sorted(answer.seconds for _, answer in self.answers if answer.status == 200)
        worst = max((answer.seconds for _, answer in self.answers if answer.status != 200), default=0.0)
        times = f", p50 {took[len(took) // 2]:.2f} s, slowest {took[-1]:.2f} s" if took else ""
        return f"{dict(counts)}{times}, slowest error {worst:.2f} s, {self.broken} connections broken and tried again"


def body(text: str) -> dict[str, object]:
    """The request for a text's continuation."""
    return {"text": text, "sampling_params": {"max_new_tokens": NEW_TOKENS, "temperature": 0}}
