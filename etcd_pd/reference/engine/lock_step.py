"""Forward passes in lock-step, as the collectives of DP attention make them: a part of the emulated compute.

A pass starts on all ranks together, when each has said what it brings to it, and ends on all of them together: a rank
without work waits for the others. The front counts the passes and knows what each lasts; a rank only takes its part.

    rank    Bring(number, tokens)  ------->  front      again whenever its queue changes, 0 where it has nothing
            <-------  Pass(number, tokens, seconds)     to every rank, when all have brought and one brought something
            ... the stated time passes ...
            Bring(number + 1, tokens)  ------->
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .messages import Bring, Pass, Work

if TYPE_CHECKING:
    from .prompt_queue import Computed, PromptQueue


@dataclass(frozen=True)
class PassCost:
    """What a forward pass costs, in seconds for each token.

    Attributes:
        longest: for each token of the rank that has most: attention and whatever else a rank does for its own tokens.
        shared: for each token of all ranks together: experts, which are spread over the ranks.
    """

    longest: float
    shared: float = 0.0

    def seconds(self, tokens: Sequence[int]) -> float:
        """How long a pass with these tokens, by rank, lasts on every rank."""
        return self.longest * max(tokens) + self.shared * sum(tokens)


def pass_size(lengths: Iterable[int], most_tokens: int) -> int:
    """How many of a rank's oldest prompts one pass takes: whole ones below ``most_tokens`` together, and always one."""
    # SGLang's rule for max_prefill_tokens (PrefillAdder.add_one_req) when pull request 14726 was measured
    count = 0
    for length in lengths:
        if count and length >= most_tokens:
            break
        most_tokens -= length
        count += 1
    return count


class LockStep:
    """The front's half: which pass comes next, and when.

    Args:
        dp_size: how many ranks there are.
        cost: what a pass costs.
    """

    def __init__(self, dp_size: int, cost: PassCost) -> None:
        self._cost = cost
        self._dp_size = dp_size
        self._living = set(range(dp_size))
        self._brought: dict[int, int] = {}
        self._number = 0

    def bring(self, dp_rank: int, bring: Bring) -> Pass | None:
        """A rank says what it brings; the pass that starts with it, if one does."""
        # what belongs to a pass that runs already crossed its start on the way: the rank says it again after the pass
        if bring.number != self._number or dp_rank not in self._living:
            return None
        self._brought[dp_rank] = bring.tokens
        return self._start()

    def lose(self, dp_rank: int) -> Pass | None:
        """A rank is gone; the pass that waited for it alone, if one did."""
        self._living.discard(dp_rank)
        self._brought.pop(dp_rank, None)
        return self._start()

    def _start(self) -> Pass | None:
        if self._brought.keys() < self._living or not any(self._brought.values()):
            return None
        tokens = tuple(self._brought.get(dp_rank, 0) for dp_rank in range(self._dp_size))
        started = Pass(number=self._number, tokens=tokens, seconds=self._cost.seconds(tokens))
        self._brought, self._number = {}, self._number + 1
        return started


class Passes:
    """A rank's half: its prompts, computed a pass at a time instead of one after the other.

    Args:
        queue: the rank's prompts, whose model takes no time of its own.
        dp_rank: the rank.
        most_tokens: no further prompt joins a pass with which it would have this many; the first one always does.
        clock: monotonic time in seconds.
    """

    def __init__(
        self, queue: PromptQueue, dp_rank: int, most_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue = queue
        self._dp_rank = dp_rank
        self._most_tokens = most_tokens
        self._clock = clock
        self._number = 0
        self._said: Bring | None = None
        self._ends = math.inf
        self._computed: list[tuple[Work, Computed]] = []

    @property
    def ends(self) -> float:
        """Monotonic time at which the running pass ends; infinite where none runs."""
        return self._ends

    def bring(self, pause: bool) -> Bring | None:
        """What to tell the front, where it does not know it yet.

        Args:
            pause: bring nothing, whatever waits.
        """
        if self._ends < math.inf:
            return None
        tokens = 0 if pause else sum(len(work.input_ids) for work in self._next())
        bring = Bring(number=self._number, tokens=tokens)
        if bring == self._said:
            return None
        self._said = bring
        return bring

    def begin(self, started: Pass) -> list[Work]:
        """A pass starts; the prompts of this rank that are in it. What they need of this machine is done at once."""
        self._ends = self._clock() + started.seconds
        tokens = started.tokens[self._dp_rank]
        inside = []
        for work in self._next():
            tokens -= len(work.input_ids)
            if tokens < 0:  # it came after the rank had said what it brings
                break
            inside.append(work)
        for _ in inside:
            computed = self._queue.step()
            assert computed is not None
            self._computed.append(computed)
        return inside

    def end(self) -> list[tuple[Work, Computed]]:
        """The prompts that the running pass has computed, once it has ended; some may have been given up meanwhile."""
        if self._clock() < self._ends:
            return []
        self._ends, self._number = math.inf, self._number + 1
        done, self._computed = self._computed, []
        return done

    def _next(self) -> list[Work]:
        """The prompts that a pass would take now."""
        waiting = self._queue.waiting
        return list(waiting)[: pass_size((len(work.input_ids) for work in waiting), self._most_tokens)]
