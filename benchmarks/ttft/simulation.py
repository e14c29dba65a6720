"""Router, dispatcher and ranks of a prefill instance as a simulation of discrete events.

Only time is simulated. Who chooses a rank are the project's own policies with its own ``Load``; what a forward pass
costs, and which prompts it takes, are the functions of the emulated engine. Ranks run in lock-step: a pass starts as
soon as any rank has a prompt and none runs, takes the oldest prompts of each rank, and ends on all ranks together. A
request's TTFT ends with its pass: decode and the network take no time here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from etcd_pd.reference.balance import Load, Policy, Request
from etcd_pd.reference.engine.lock_step import PassCost, pass_size

from . import published
from .workload import Workload


class Cost(Protocol):
    """What a forward pass costs."""

    def seconds(self, tokens: Sequence[int]) -> float:
        """How long one with these tokens, by rank, lasts."""


@dataclass(frozen=True)
class Outcome:
    """What became of a workload.

    Attributes:
        ttfts: seconds from each request's arrival to the end of its pass, in the order of arrival.
        ranks: the rank of each.
        passes: tokens by rank, and start and end in seconds, of each forward pass.
    """

    ttfts: tuple[float, ...]
    ranks: tuple[int, ...]
    passes: tuple[tuple[tuple[int, ...], float, float], ...]

    @property
    def seconds(self) -> float:
        """From the first arrival to the last first token."""
        return self.passes[-1][2]


@dataclass
class _Rank:
    waiting: deque[int] = field(default_factory=deque)
    requests: int = 0
    tokens: int = 0
    waiting_tokens: int = 0

    @property
    def load(self) -> Load:
        return Load(self.requests, self.tokens, True, self.waiting_tokens)


class _Ranks:
    """The ranks as the dispatcher accounts for them."""

    def __init__(self, workload: Workload, policy: Policy, dp_size: int) -> None:
        self._workload = workload
        self._policy = policy
        self.ranks = [_Rank() for _ in range(dp_size)]
        self.chosen: list[int] = []

    def arrive(self, index: int) -> None:
        """The dispatcher chooses a rank."""
        tokens = self._workload.lengths[index]
        request = Request(self._workload.rooms[index], tokens, sequence=index)
        dp_rank = self._policy.choose(request, [rank.load for rank in self.ranks])
        rank = self.ranks[dp_rank]
        rank.waiting.append(index)
        rank.requests += 1
        rank.tokens += tokens
        rank.waiting_tokens += tokens
        self.chosen.append(dp_rank)

    def begin(self, pass_tokens: int) -> list[list[int]]:
        """A pass starts: what each rank computes in it."""
        parts = []
        for rank in self.ranks:
            count = pass_size((self._workload.lengths[index] for index in rank.waiting), pass_tokens)
            parts.append([rank.waiting.popleft() for _ in range(count)])
            rank.waiting_tokens -= sum(self._workload.lengths[index] for index in parts[-1])
        return parts

    def end(self, parts: list[list[int]]) -> None:
        """The pass has ended."""
        for rank, part in zip(self.ranks, parts, strict=True):
            rank.requests -= len(part)
            rank.tokens -= sum(self._workload.lengths[index] for index in part)


def simulate(
    workload: Workload,
    policy: Policy,
    cost: Cost,
    pass_tokens: int = published.PASS_TOKENS,
    dp_size: int = published.DP_SIZE,
) -> Outcome:
    """Let ranks serve a workload.

    Args:
        workload: the requests.
        policy: what chooses their ranks.
        cost: what a pass costs.
        pass_tokens: bound of a rank's part of a pass.
        dp_size: number of ranks.
    """
    ranks = _Ranks(workload, policy, dp_size)

    def seconds(parts: Sequence[Sequence[int]]) -> float:
        return cost.seconds(_tokens(parts, workload.lengths))

    ttfts, passes = _serve(workload, ranks.arrive, lambda: ranks.begin(pass_tokens), ranks.end, seconds)
    return Outcome(ttfts, tuple(ranks.chosen), passes)


def simulate_late_binding(
    workload: Workload,
    cost: PassCost,
    pass_tokens: int = published.PASS_TOKENS,
    dp_size: int = published.DP_SIZE,
    even: bool = False,
) -> Outcome:
    """What more information would give: no rank is chosen before a pass starts, and then for all that wait at once.

    The oldest prompts that a pass can hold are dealt out, the longest first, each to the rank with the fewest tokens.

    Args:
        workload: the requests.
        cost: what a pass costs.
        pass_tokens: bound of a rank's part of a pass.
        dp_size: number of ranks.
        even: count a pass as if its tokens were dealt out evenly, but no shorter than its longest prompt: no choice of
            ranks makes these passes shorter.
    """
    waiting: list[int] = []
    ranks = [0] * len(workload.arrivals)
    lengths = workload.lengths

    def begin() -> list[list[int]]:
        count = pass_size((lengths[index] for index in waiting), dp_size * pass_tokens)
        while not (parts := _deal(waiting[:count], lengths, pass_tokens, dp_size)):
            count -= 1
        del waiting[:count]
        for dp_rank, part in enumerate(parts):
            for index in part:
                ranks[index] = dp_rank
        return parts

    def seconds(parts: Sequence[Sequence[int]]) -> float:
        tokens = _tokens(parts, lengths)
        if even:
            longest = max(lengths[index] for part in parts for index in part)
            return cost.longest * max(longest, sum(tokens) / dp_size) + cost.shared * sum(tokens)
        return cost.seconds(tokens)

    ttfts, passes = _serve(workload, waiting.append, begin, lambda parts: None, seconds)
    return Outcome(ttfts, tuple(ranks), passes)


def _deal(prompts: Sequence[int], lengths: Sequence[int], pass_tokens: int, dp_size: int) -> list[list[int]]:
    """The longest first, each to the rank with the fewest tokens; empty where a part is too long for a pass."""
    parts: list[list[int]] = [[] for _ in range(dp_size)]
    tokens = [0] * dp_size
    for index in sorted(prompts, key=lambda index: -lengths[index]):
        dp_rank = min(range(dp_size), key=tokens.__getitem__)
        parts[dp_rank].append(index)
        tokens[dp_rank] += lengths[index]
        if len(parts[dp_rank]) > 1 and tokens[dp_rank] >= pass_tokens:
            return []
    return parts


def _serve(
    workload: Workload,
    arrive: Callable[[int], None],
    begin: Callable[[], list[list[int]]],
    end: Callable[[list[list[int]]], None],
    seconds: Callable[[list[list[int]]], float],
) -> tuple[tuple[float, ...], tuple[tuple[tuple[int, ...], float, float], ...]]:
    """Time: passes one after the other, and arrivals before, while and between them."""
    arrivals, count = workload.arrivals, len(workload.arrivals)
    ttfts, passes = [0.0] * count, []
    came = done = 0
    now = 0.0

    def let_in(until: float) -> None:
        nonlocal came
        while came < count and arrivals[came] <= until:
            arrive(came)
            came += 1

    while done < count:
        if came == done:
            now = max(now, arrivals[came])
        let_in(now)
        parts = begin()
        ends = now + seconds(parts)
        passes.append((_tokens(parts, workload.lengths), now, ends))
        # who comes while the pass runs is dispatched then: the pass counts as load, and takes nobody in any more
        let_in(ends)
        end(parts)
        now = ends
        for index in (index for part in parts for index in part):
            ttfts[index] = now - arrivals[index]
            done += 1
    return tuple(ttfts), tuple(passes)


def _tokens(parts: Sequence[Sequence[int]], lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(sum(lengths[index] for index in part) for part in parts)
