"""The prompts that a prefill rank computes, first come, first served, a chunk at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .emulated import EmulatedModel
from .messages import Work
from .model import Model
from .sampling import choose, draw_seed, logprob

#: Tokens of a chunk that holds any prompt.
WHOLE_PROMPTS = 1 << 30


@dataclass(frozen=True)
class Computed:
    """A computed prompt.

    Attributes:
        tokens: its length.
        first_token: the token that follows it.
        first_logprob: that token's log probability.
        seed: of the request's draws.
        data: the KV cache as it travels.
        began_ns: monotonic time, in nanoseconds, when its computation began.
    """

    tokens: int
    first_token: int
    first_logprob: float
    seed: int
    data: bytes = field(repr=False)
    began_ns: int


class PromptQueue:
    """Prompts in the order of their arrival.

    Args:
        model: what computes them.
        chunk_tokens: most tokens in one :meth:`step`.
    """

    def __init__(self, model: Model | EmulatedModel, chunk_tokens: int) -> None:
        # real and emulated prompts are never mixed, which a type checker cannot see
        self._model: Any = model
        self._chunk_tokens = chunk_tokens
        self._waiting: deque[Work] = deque()
        self._prompt: Any = None
        self._began_ns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> Sequence[Work]:
        """All prompts, the oldest first."""
        return self._waiting

    @property
    def begun(self) -> bool:
        """Whether some of the oldest prompt is computed."""
        return self._prompt is not None

    def add(self, work: Work) -> None:
        """A further prompt."""
        self._waiting.append(work)

    def remove(self, id: int) -> None:
        """Forget a prompt, if it is still here."""
        if self._waiting and self._waiting[0].id == id:
            self._waiting.popleft()
            self._prompt = None
        else:
            self._waiting = deque(work for work in self._waiting if work.id != id)

    def step(self) -> tuple[Work, Computed] | None:
        """Compute one chunk of the oldest prompt; the prompt, where that was its last one."""
        if not self._waiting:
            return None
        work = self._waiting[0]
        if self._prompt is None:
            self._prompt, self._began_ns = self._model.start(), time.monotonic_ns()
        done = self._prompt.tokens
        logits = self._model.extend(self._prompt, work.input_ids[done : done + self._chunk_tokens])
        if self._prompt.tokens < len(work.input_ids):
            return None
        cache = self._model.export(self._prompt)
        self._waiting.popleft()
        self._prompt = None
        seed = draw_seed() if work.sampling.seed is None else work.sampling.seed
        first = choose(logits, work.sampling, seed, 0)
        return work, Computed(
            len(work.input_ids), first, logprob(logits, first), seed, cache.to_bytes(), self._began_ns
        )
