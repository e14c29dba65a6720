"""What a client of OpenAI's routes is told, through the router."""

from __future__ import annotations

import pytest

from tests.e2e.running import Reply, RunningStack, get_json, post

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def chat(stack: RunningStack, **fields: object) -> Reply:
    return post(f"{stack.router}/v1/chat/completions", {**CHAT, **fields})


def test_a_chat_is_answered_when_it_names_the_model_that_is_served_or_none(stack: RunningStack) -> None:
    served = get_json(f"{stack.prefill}/v1/models")["data"][0]["id"]
    for named in ({"model": served}, {}):
        reply = chat(stack, **named)
        assert reply.status == 200, reply
        assert reply.body["model"] == served


def test_a_model_is_not_found_when_nobody_serves_it(stack: RunningStack) -> None:
    reply = chat(stack, model="gpt-4o")
    assert reply.status == 404
    assert "gpt-4o" in str(reply.body["error"]["message"])


@pytest.mark.parametrize("fields", [{"n": 2}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}])
def test_what_is_not_there_is_a_400(fields: dict[str, object], stack: RunningStack) -> None:
    reply = chat(stack, **fields)
    assert reply.status == 400
    assert f"{next(iter(fields))}: is not implemented" in str(reply.body["error"]["message"])
