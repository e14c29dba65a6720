"""The form of the ``/v1`` routes. What ``/generate`` tells in ``meta_info`` is in the same field of each choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .answers import Answer
from .requests import Plan


class _OpenAIShape:
    object = ""
    chunk_object = ""

    def __init__(self, plan: Plan, model: str, id: str) -> None:
        self._include_usage = plan.include_usage
        self._model = model
        self._id = id
        self._created = int(time.time())

    def whole(self, answers: Sequence[Answer]) -> Any:
        """The body of an answer that is not streamed."""
        return {**self._frame(self.object, [self._choice(answer) for answer in answers]), "usage": _usage(answers)}

    def event(self, answer: Answer) -> Any:
        """What is sent after an update: the new text alone."""
        return self._frame(self.chunk_object, [self._delta(answer)])

    def last(self, answers: Sequence[Answer]) -> list[Any]:
        """What ends a stream."""
        return [{**self._frame(self.chunk_object, []), "usage": _usage(answers)}] if self._include_usage else []

    def _frame(self, object: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": object,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _choice(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError


class CompletionShape(_OpenAIShape):
    """The form of ``/v1/completions``."""

    object = chunk_object = "text_completion"

    def _choice(self, answer: Answer) -> dict[str, Any]:
        return {**_ending(answer), "text": answer.text}

    def _delta(self, answer: Answer) -> dict[str, Any]:
        return {**_ending(answer), "text": answer.fresh_text}


class ChatShape(_OpenAIShape):
    """The form of ``/v1/chat/completions``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    _begun = False

    def _choice(self, answer: Answer) -> dict[str, Any]:
        return {**_ending(answer), "message": {"role": "assistant", "content": answer.text}}

    def _delta(self, answer: Answer) -> dict[str, Any]:
        begun, self._begun = self._begun, True  # a chat has one answer
        role = {} if begun else {"role": "assistant"}
        return {**_ending(answer), "delta": {**role, "content": answer.fresh_text}}


def _ending(answer: Answer) -> dict[str, Any]:
    reason = answer.finish_reason
    ended = {"index": answer.index, "logprobs": None, "finish_reason": None if reason is None else reason["type"]}
    return ended if reason is None else {**ended, "meta_info": answer.meta_info}


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    prompt = sum(len(answer.item.input_ids) for answer in answers)
    completion = sum(len(answer.token_ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
