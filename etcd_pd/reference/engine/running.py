"""The requests that a decode rank generates at once, and the rows of the batch that are theirs."""

from __future__ import annotations

from .decode_batch import Batch
from .generation import Generation
from .kv import KVCache


class Running:
    """Requests in a running batch.

    Args:
        batch: an empty one.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._rows: list[Generation] = []

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, generation: Generation, cache: KVCache) -> None:
        """Take a request in, whose first token is known."""
        self._batch.join(cache)
        self._rows.append(generation)

    def leave(self, generation: Generation) -> None:
        """Let a request go."""
        row = self._rows.index(generation)
        self._batch.leave(row)
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def step(self) -> list[Generation]:
        """One more token for each request; those that have ended with it have left."""
        if not self._rows:
            return []
        stepped = list(self._rows)
        logits = self._batch.step([generation.last_token for generation in stepped])
        for generation, row, likeliest in zip(stepped, logits, logits.argmax(-1).tolist(), strict=True):
            generation.choose(row, likeliest)
            if generation.finished:
                self.leave(generation)
        return stepped
