"""One prompt's answer as it grows, and SGLang's JSON of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .messages import Update
from .requests import DECODE, Item, Plan


class Answer:
    """What has been generated for one prompt.

    Args:
        item: the prompt.
        id: the client's or the front's name for it.
        index: its place in the request.
        role: role of the instance that answers.
        started: ``time.perf_counter()`` when the request came in.
        emulated: whether a cost model answers instead of the language model.

    Attributes:
        text: all of its text so far.
        fresh_text: what the last update added to it.
        token_ids: all of its tokens so far.
        finish_reason: why it ended, None while it goes on.
    """

    def __init__(self, item: Item, id: str, index: int, role: str, started: float, emulated: bool) -> None:
        self.item = item
        self.id = id
        self.index = index
        self.text = ""
        self.fresh_text = ""
        self.token_ids: list[int] = []
        self.finish_reason: dict[str, Any] | None = None
        self._role = role
        self._started = started
        self._emulated = emulated
        self._ttft_ms: float | None = None
        self._logprobs: list[float] = []
        self._meta: dict[str, Any] = {}

    def add(self, update: Update) -> None:
        """Take what is new."""
        if self._ttft_ms is None and update.token_ids:
            self._ttft_ms = (time.perf_counter() - self._started) * 1e3
        self.fresh_text = update.text
        self.text += update.text
        self.token_ids += update.token_ids
        self._logprobs += update.logprobs
        self._meta |= update.meta
        self.finish_reason = update.finish_reason

    @property
    def meta_info(self) -> dict[str, Any]:
        """SGLang's account of the request, and ours."""
        meta: dict[str, Any] = {
            "id": self.id,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.item.input_ids),
            "completion_tokens": len(self.token_ids),
            "cached_tokens": 0,
        }
        if self._emulated:
            meta["compute"] = "emulated"
        if self.item.logprobs:
            meta["input_token_logprobs"] = []
            meta["output_token_logprobs"] = [
                [value, token, None] for value, token in zip(self._logprobs, self.token_ids, strict=True)
            ]
        if self._role == DECODE:
            meta["etcd_pd"] = {**self._meta, "ttft_ms": self._ttft_ms}
        else:
            meta |= self._meta
        return meta

    def to_json(self) -> dict[str, Any]:
        """All of it so far, in the form of ``/generate``."""
        return {"text": self.text, "output_ids": self.token_ids, "meta_info": self.meta_info}


class GenerateShape:
    """The form of ``/generate``: every event of a stream holds the whole answer so far."""

    def __init__(self, plan: Plan) -> None:
        self._batch = plan.batch

    def whole(self, answers: Sequence[Answer]) -> Any:
        """The body of an answer that is not streamed."""
        return [answer.to_json() for answer in answers] if self._batch else answers[0].to_json()

    def event(self, answer: Answer) -> Any:
        """What is sent after an update."""
        return {**answer.to_json(), "index": answer.index} if self._batch else answer.to_json()

    def last(self, answers: Sequence[Answer]) -> list[Any]:
        """What ends a stream."""
        return []
