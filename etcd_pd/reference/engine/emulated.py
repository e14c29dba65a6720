"""A stated cost model in place of the language model, for studying scheduling: every answer says ``emulated``.

A rank computes a stated number of prompt tokens per second, one chunk after the other, and a decode step takes a
stated time whatever the size of the batch. The tokens are a function of the prompt, and the "KV cache" is the prompt's
token ids: what decode generates is right only if the right cache arrived.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from .decode_batch import Batch
from .kv import KVCache, KVLayout

#: No token ends a text: requests run as long as they ask for.
_FIRST_TEXT_TOKEN = 4


class EmulatedPrompt:
    """A prompt that is being "computed"."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []

    @property
    def tokens(self) -> int:
        """How many tokens are done."""
        return len(self.token_ids)


class EmulatedModel:
    """Has the operations of :class:`.model.Model`, and takes its time.

    Args:
        prefill_tokens_per_second: prompt tokens that one rank computes.
        decode_steps_per_second: steps of the running batch.
        vocabulary: tokens are below this.
    """

    emulated = True
    layout = KVLayout(torch.int64, ((1, 1, 1),))

    def __init__(self, prefill_tokens_per_second: float, decode_steps_per_second: float, vocabulary: int) -> None:
        self._prefill_rate = prefill_tokens_per_second
        self._decode_rate = decode_steps_per_second
        self._vocabulary = vocabulary

    def start(self) -> EmulatedPrompt:
        """An empty prompt."""
        return EmulatedPrompt()

    def extend(self, prompt: EmulatedPrompt, token_ids: Sequence[int]) -> torch.Tensor:
        """Let a chunk's time pass; logits ``[vocabulary]`` after it."""
        time.sleep(len(token_ids) / self._prefill_rate)
        prompt.token_ids.extend(token_ids)
        return _logits(prompt.token_ids, self._vocabulary)

    def export(self, prompt: EmulatedPrompt) -> KVCache:
        """The token ids in the shape of a KV cache."""
        ids = torch.tensor(prompt.token_ids).reshape(1, -1, 1)
        return KVCache(((ids, ids.clone()),))

    def batch(self) -> Batch:
        """An empty running batch."""
        return _EmulatedBatch(1 / self._decode_rate, self._vocabulary)


class _EmulatedBatch:
    def __init__(self, step_seconds: float, vocabulary: int) -> None:
        self._step_seconds = step_seconds
        self._vocabulary = vocabulary
        self._rows: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, cache: KVCache) -> None:
        self._rows.append(cache.layers[0][0].flatten().tolist())

    def leave(self, row: int) -> None:
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        time.sleep(self._step_seconds)
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return torch.stack([_logits(row, self._vocabulary) for row in self._rows])


def _logits(token_ids: Sequence[int], vocabulary: int) -> torch.Tensor:
    """All certainty on one token that the last few tokens and the length decide."""
    state = len(token_ids)
    for token_id in token_ids[-8:]:
        state = (state * 1_000_003 + token_id + 1) % (1 << 61)
    logits = torch.zeros(vocabulary)
    logits[_FIRST_TEXT_TOKEN + state % (vocabulary - _FIRST_TEXT_TOKEN)] = 10.0
    return logits
