"""Decode's running batch: requests join and leave it between any two steps.

The KV caches of a batch lie in one padded tensor per layer, ``[rows, heads, room, width]``, one row a request. A step
computes one token for each row; the row's new key and value are written at the row's own length, and a mask hides what
lies beyond. A request that leaves hands its row to the last one, so the rows in use are always the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .kv import KVCache, KVLayout

#: Token slots by which the padded tensors grow at least.
_GROWTH = 128


class Batch(Protocol):
    """What a decode loop needs of a running batch."""

    def __len__(self) -> int:
        """How many requests it holds."""

    def join(self, cache: KVCache) -> None:
        """Take a request in; it gets the last row."""

    def leave(self, row: int) -> None:
        """Let a request go. The last row's request moves to ``row``."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; logits ``[rows, vocabulary]`` for the token after it."""


class PaddedBatch:
    """A :class:`Batch` of real KV caches."""

    def __init__(self, network: Any, layout: KVLayout, device: torch.device) -> None:
        self._network = network
        self._device = device
        self._lengths: list[int] = []
        self._layers = [_PaddedLayer(layout.dtype, device, *shape) for shape in layout.layers]
        self._cache = Cache(layers=list(self._layers))

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.inference_mode()
    def join(self, cache: KVCache) -> None:
        """Take a request in; it gets the last row."""
        row = len(self._lengths)
        for layer, (keys, values) in zip(self._layers, cache.layers, strict=True):
            layer.reserve(row + 1, cache.tokens + 1, row)
            layer.keys[row, :, : cache.tokens] = keys.to(self._device)
            layer.values[row, :, : cache.tokens] = values.to(self._device)
        self._lengths.append(cache.tokens)

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Let a request go. The last row's request moves to ``row``."""
        last = len(self._lengths) - 1
        length = self._lengths.pop()
        if row != last:
            self._lengths[row] = length
            for layer in self._layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; logits ``[rows, vocabulary]`` for the token after it."""
        rows, longest = len(self._lengths), max(self._lengths) + 1
        lengths = torch.tensor(self._lengths, device=self._device)
        for layer in self._layers:
            layer.reserve(rows, longest, rows)
            layer.select(lengths, longest)
        hidden = torch.arange(longest, device=self._device) > lengths[:, None]
        mask = torch.zeros(rows, longest, device=self._device, dtype=self._layers[0].dtype)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        output = self._network(
            input_ids=torch.tensor(tokens, device=self._device)[:, None],
            attention_mask=mask[:, None, None, :],
            position_ids=lengths[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._lengths = [length + 1 for length in self._lengths]
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class _PaddedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers is partly untyped
    """One layer's keys and values, with room to spare in both rows and tokens."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, dtype: torch.dtype, device: torch.device, heads: int, key_width: int, value_width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = dtype, device
        self.keys = torch.zeros(0, heads, 0, key_width, dtype=dtype, device=device)
        self.values = torch.zeros(0, heads, 0, value_width, dtype=dtype, device=device)
        self.is_initialized = True
        self._longest = 0

    def reserve(self, rows: int, tokens: int, used: int) -> None:
        """Make room for ``rows`` rows of ``tokens`` tokens, keeping the first ``used`` rows."""
        have_rows, _, have_tokens, _ = self.keys.shape
        if rows <= have_rows and tokens <= have_tokens:
            return
        if rows > have_rows:
            have_rows = max(rows, 2 * have_rows)
        if tokens > have_tokens:
            have_tokens = max(tokens + _GROWTH, have_tokens * 5 // 4)
        self.keys = _grown(self.keys, have_rows, have_tokens, used)
        self.values = _grown(self.values, have_rows, have_tokens, used)

    def select(self, lengths: torch.Tensor, longest: int) -> None:
        """Say where the coming step writes, and how much of the padded tensors it reads."""
        self._rows = torch.arange(len(lengths), device=lengths.device)
        self._lengths, self._longest = lengths, longest

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one new token for each row, and return all of the batch's keys and values."""
        self.keys[self._rows, :, self._lengths] = key_states[:, :, 0]
        self.values[self._rows, :, self._lengths] = value_states[:, :, 0]
        rows = len(self._rows)
        return self.keys[:rows, :, : self._longest], self.values[:rows, :, : self._longest]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the layer is made with its shape."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask, which a step brings along itself."""
        return self._longest, 0

    def get_seq_length(self) -> int:
        """Tokens before the current step, of the longest row."""
        return self._longest - 1

    def get_max_length(self) -> int:
        """No bound."""
        return -1


def _grown(tensor: torch.Tensor, rows: int, tokens: int, used: int) -> torch.Tensor:
    grown = tensor.new_zeros(rows, tensor.shape[1], tokens, tensor.shape[3])
    grown[:used, :, : tensor.shape[2]] = tensor[:used]
    return grown
