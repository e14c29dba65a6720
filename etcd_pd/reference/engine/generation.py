"""The state of one running request: its tokens, its text, and whether it has ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from .messages import Update, Work
from .sampling import choose, logprob
from .text import TextStream, Tokenizer


class Generation:
    """What has been generated for one request.

    Args:
        work: the request.
        end_tokens: the model's own end tokens.
        tokenizer: what makes text of tokens.
        seed: of the request's draws, as prefill drew the first.
    """

    def __init__(self, work: Work, end_tokens: Collection[int], tokenizer: Tokenizer, seed: int) -> None:
        sampling = work.sampling
        self.work = work
        self._seed = seed
        self._stops = frozenset(sampling.stop_token_ids) | frozenset(() if sampling.ignore_eos else end_tokens)
        self._stream = TextStream(tokenizer, sampling.stop)
        self._count = 0
        self._finish_reason: dict[str, Any] | None = None
        self._unsent: tuple[list[int], list[str], list[float]] = [], [], []
        #: The token that the model continues from.
        self.last_token = -1

    @property
    def count(self) -> int:
        """How many tokens there are so far."""
        return self._count

    @property
    def finished(self) -> bool:
        """Whether no token follows."""
        return self._finish_reason is not None

    def choose(self, logits: torch.Tensor, likeliest: int) -> None:
        """Choose the next token from a row of logits, whose largest is at ``likeliest``."""
        sampling = self.work.sampling
        token = likeliest if sampling.temperature == 0 else choose(logits, sampling, self._seed, self._count)
        self.push(token, logprob(logits, token) if self.work.logprobs else 0.0)

    def push(self, token: int, token_logprob: float) -> None:
        """Take the next token."""
        tokens, texts, logprobs = self._unsent
        most = self.work.sampling.max_new_tokens
        if most == 0:
            self._finish_reason = {"type": "length", "length": 0}
            return
        self.last_token = token
        self._count += 1
        tokens.append(token)
        if self.work.logprobs:
            logprobs.append(token_logprob)
        if token in self._stops:
            # the token that ends a text is no part of it
            self._finish_reason = {"type": "stop", "matched": token}
        else:
            texts.append(self._stream.push(token))
            if self._count >= most:
                self._finish_reason = {"type": "length", "length": most}
        if self.finished:
            texts.append(self._stream.finish())
        if self._stream.matched is not None:
            self._finish_reason = {"type": "stop", "matched": self._stream.matched}

    def take(self, meta: dict[str, Any]) -> Update:
        """What is new since the last call, as a message to the front."""
        tokens, texts, logprobs = self._unsent
        self._unsent = [], [], []
        return Update(
            id=self.work.id,
            token_ids=tokens,
            text="".join(texts),
            logprobs=logprobs,
            finish_reason=self._finish_reason,
            meta=meta,
        )
