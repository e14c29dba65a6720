"""Bad input is refused with the field and the rule, before anything is computed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from etcd_pd.reference.engine.answers import Answer
from etcd_pd.reference.engine.errors import BadRequest, ModelUnknown
from etcd_pd.reference.engine.messages import Update
from etcd_pd.reference.engine.openai import ChatShape
from etcd_pd.reference.engine.requests import DECODE, PREFILL, Limits, Plan, plan_chat, plan_completion, plan_generate
from etcd_pd.reference.engine.text import Tokenizer

PREFILL_LIMITS = Limits(PREFILL, 1024, 200, 4, "round_robin", ("10.0.0.1:8998", "pod:8998"))
FOLLOWING = Limits(PREFILL, 1024, 200, 4, "follow_bootstrap_room", ("10.0.0.1:8998",))
DECODE_LIMITS = Limits(DECODE, 1024, 200, 1, "round_robin")
ROUTED = {"bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": 6}


def generate(tokenizer: Tokenizer, limits: Limits = PREFILL_LIMITS, **fields: Any) -> Plan:
    body = {**ROUTED, "input_ids": [1, 2, 3], **fields}
    present = {name: value for name, value in body.items() if value is not ...}
    return plan_generate(json.dumps(present).encode(), tokenizer, limits)


def test_what_a_router_sends(tokenizer: Tokenizer) -> None:
    plan = generate(
        tokenizer,
        DECODE_LIMITS,
        text="The capital of France is",
        input_ids=...,
        bootstrap_room=2**63 - 1,
        sampling_params={"max_new_tokens": 5, "temperature": 0, "n": 1, "frequency_penalty": 0.0, "top_k": -1},
        stream=True,
        model=None,
        log_metrics=True,
        lora_path="",
        return_routed_experts=False,
        logprob_start_len=-1,
        rid="mine",
    )
    [item] = plan.items
    assert (item.room, item.instance) == (2**63 - 1, "10.0.0.1:8998")
    assert item.input_ids == tokenizer.encode("The capital of France is")
    assert item.sampling.max_new_tokens == 5
    assert (plan.stream, plan.batch, plan.rids) == (True, False, ("mine",))


def test_a_batch_has_one_room_each(tokenizer: Tokenizer) -> None:
    plan = generate(
        tokenizer,
        input_ids=[[1, 2], [3]],
        bootstrap_room=[8, 9],
        bootstrap_host=["10.0.0.1", "pod"],
        bootstrap_port=[8998, 8998],
    )
    assert plan.batch
    assert [(item.room, item.instance, item.input_ids) for item in plan.items] == [
        (8, "10.0.0.1:8998", [1, 2]),
        (9, "pod:8998", [3]),
    ]


@pytest.mark.parametrize("host", ["fd00::5", "[fd00::5]"])
def test_an_instance_has_one_name_when_a_router_spells_its_ipv6_address_with_or_without_brackets(
    tokenizer: Tokenizer, host: str
) -> None:
    limits = Limits(PREFILL, 1024, 200, 4, "round_robin", ("[fd00::5]:8998",))
    [item] = generate(tokenizer, limits, bootstrap_host=host).items
    assert item.instance == "[fd00::5]:8998"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"bootstrap_room": ...}, "bootstrap_room"),
    ({"bootstrap_room": None}, "bootstrap_room"),
    ({"bootstrap_room": -1}, "bootstrap_room"),
    ({"bootstrap_room": 2**64}, "bootstrap_room"),
    ({"bootstrap_room": 10**40}, "bootstrap_room"),
    ({"bootstrap_room": 5.0}, "bootstrap_room"),
    ({"bootstrap_room": "6"}, "bootstrap_room"),
    ({"bootstrap_room": True}, "bootstrap_room"),
    ({"bootstrap_room": [6]}, "bootstrap_room"),
    ({"bootstrap_host": ...}, "bootstrap_host"),
    ({"bootstrap_host": ""}, "bootstrap_host"),
    ({"bootstrap_host": "a b"}, "bootstrap_host"),
    ({"bootstrap_host": "elsewhere"}, "bootstrap_host"),
    ({"bootstrap_host": 1}, "bootstrap_host"),
    ({"bootstrap_port": ...}, "bootstrap_port"),
    ({"bootstrap_port": 0}, "bootstrap_port"),
    ({"bootstrap_port": 70000}, "bootstrap_port"),
    ({"bootstrap_port": "8998"}, "bootstrap_port"),
    ({"bootstrap_port": 8999}, "bootstrap_host"),
    ({"input_ids": ...}, "text"),
    ({"text": "both"}, "text"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": ..., "text": ""}, "text"),
    ({"input_ids": ..., "text": []}, "text"),
    ({"input_ids": ..., "text": 5}, "text"),
    ({"input_ids": "1 2 3"}, "input_ids"),
    ({"input_ids": [1, "2"]}, "input_ids[1]"),
    ({"input_ids": [1, 2.0]}, "input_ids[1]"),
    ({"input_ids": [1, [2]]}, "input_ids"),
    ({"input_ids": [[1], []], "bootstrap_room": [6, 7]}, "input_ids"),
    ({"input_ids": [[1, True]], "bootstrap_room": [6]}, "input_ids[0][1]"),
    ({"input_ids": [1024]}, "input_ids"),
    ({"input_ids": [-1]}, "input_ids"),
    ({"input_ids": [10**30]}, "input_ids"),
    ({"input_ids": [5] * 200}, "input_ids"),
    ({"input_ids": [[1], [2]]}, "bootstrap_room"),
    ({"input_ids": [[1], [2]], "bootstrap_room": [6]}, "bootstrap_room"),
    ({"input_ids": [[1], [2]], "bootstrap_room": [6, 6]}, "bootstrap_room"),
    ({"input_ids": [[1], [2]], "bootstrap_room": [6, -7]}, "bootstrap_room"),
    ({"sampling_params": []}, "sampling_params"),
    ({"sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
    ({"sampling_params": {"max_new_tokens": 1.5}}, "sampling_params.max_new_tokens"),
    ({"sampling_params": {"max_new_tokens": "5"}}, "sampling_params.max_new_tokens"),
    ({"sampling_params": {"max_new_tokens": 198}}, "max_new_tokens"),
    ({"sampling_params": {"temperature": -0.1}}, "temperature"),
    ({"sampling_params": {"temperature": "hot"}}, "sampling_params.temperature"),
    ({"sampling_params": {"top_p": 0}}, "top_p"),
    ({"sampling_params": {"top_p": 1.1}}, "top_p"),
    ({"sampling_params": {"top_k": 0}}, "top_k"),
    ({"sampling_params": {"top_k": 10**30}}, "top_k"),
    ({"sampling_params": {"seed": 2**63}}, "seed"),
    ({"sampling_params": {"stop": [""]}}, "stop"),
    ({"sampling_params": {"stop": 5}}, "sampling_params.stop"),
    ({"sampling_params": {"stop": ["x"] * 65}}, "stop"),
    ({"sampling_params": {"stop_token_ids": [-1]}}, "stop_token_ids"),
    ({"sampling_params": {"stop_token_ids": 0}}, "sampling_params.stop_token_ids"),
    ({"sampling_params": {"ignore_eos": 1}}, "sampling_params.ignore_eos"),
    ({"sampling_params": {"n": 2}}, "sampling_params.n"),
    ({"sampling_params": {"frequency_penalty": 0.5}}, "sampling_params.frequency_penalty"),
    ({"sampling_params": {"json_schema": "{}"}}, "sampling_params.json_schema"),
    ({"lora_path": "adapter"}, "lora_path"),
    ({"logprob_start_len": 0, "return_logprob": True}, "logprob_start_len"),
    ({"stream": "yes"}, "stream"),
    ({"rid": 5}, "rid"),
    ({"rid": ["a", "b"]}, "rid"),
    ({"routed_dp_rank": 4}, "routed_dp_rank"),
    ({"routed_dp_rank": -1}, "routed_dp_rank"),
    ({"routed_dp_rank": "1"}, "routed_dp_rank"),
    ({"data_parallel_rank": 4}, "data_parallel_rank"),
    ({"disagg_prefill_dp_rank": 4}, "disagg_prefill_dp_rank"),
    ({"disagg_prefill_dp_rank": -1}, "disagg_prefill_dp_rank"),
    ({"routed_dp_rank": 1, "data_parallel_rank": 2}, "routed_dp_rank"),
]


@pytest.mark.parametrize(("fields", "field"), BAD, ids=lambda value: json.dumps(value, default=str)[:60])
def test_bad_fields_are_named(tokenizer: Tokenizer, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        generate(tokenizer, **fields)
    error = caught.value.to_json()["error"]
    assert caught.value.status == 400
    assert error["type"] == "BadRequest"
    assert error["field"] == field
    assert error["rule"] and error["message"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe", b'{"text": "\\ud800"}', b"[" * 100_000, b"{}"]
)
def test_a_body_that_is_no_request(tokenizer: Tokenizer, body: bytes) -> None:
    for plan in (plan_generate, plan_completion, plan_chat):
        with pytest.raises(BadRequest):
            plan(body, tokenizer, PREFILL_LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        *ROUTED,
        "text",
        "input_ids",
        "sampling_params",
        "stream",
        "rid",
        "prompt",
        "messages",
        "routed_dp_rank",
        "stop",
        "max_tokens",
        "temperature",
        "n",
    ]
)


@settings(max_examples=400, deadline=None)
@given(fields=st.dictionaries(names, json_values, max_size=6))
def test_no_body_raises_anything_else(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    body = json.dumps({**ROUTED, **fields}).encode()
    for plan in (plan_generate, plan_completion, plan_chat):
        try:
            plan(body, tokenizer, PREFILL_LIMITS)
        except BadRequest:
            continue


def test_named_ranks(tokenizer: Tokenizer) -> None:
    assert generate(tokenizer, routed_dp_rank=3).items[0].routed_dp_rank == 3
    assert generate(tokenizer, data_parallel_rank=0).items[0].routed_dp_rank == 0
    both = generate(tokenizer, disagg_prefill_dp_rank=2).items[0]
    assert (both.routed_dp_rank, both.prefill_dp_rank) == (2, 2)


def test_decode_s_only_rank_takes_ranks_that_are_prefill_s(tokenizer: Tokenizer) -> None:
    item = generate(tokenizer, DECODE_LIMITS, routed_dp_rank=3, disagg_prefill_dp_rank=3).items[0]
    assert item.prefill_dp_rank == 3
    with pytest.raises(BadRequest):
        generate(tokenizer, DECODE_LIMITS, routed_dp_rank=-1)
    with pytest.raises(BadRequest):
        generate(tokenizer, Limits(DECODE, 1024, 200, 2, "round_robin"), routed_dp_rank=2)


def test_following_the_room_leaves_no_choice(tokenizer: Tokenizer) -> None:
    assert generate(tokenizer, FOLLOWING, routed_dp_rank=2).items[0].routed_dp_rank == 2
    with pytest.raises(BadRequest, match=r"bootstrap_room % dp_size = 2"):
        generate(tokenizer, FOLLOWING, routed_dp_rank=3)
    # a rank that decode gets is no guess
    assert generate(tokenizer, FOLLOWING, disagg_prefill_dp_rank=3).items[0].routed_dp_rank == 3


def test_as_much_as_the_context_holds(tokenizer: Tokenizer) -> None:
    assert generate(tokenizer, input_ids=[5] * 199).items[0].sampling.max_new_tokens == 1
    assert generate(tokenizer, sampling_params={"max_new_tokens": 197}).items[0].sampling.max_new_tokens == 197
    assert generate(tokenizer).items[0].sampling.max_new_tokens == 128
    assert generate(tokenizer, sampling_params={"max_new_tokens": 0}).items[0].sampling.max_new_tokens == 0


def test_completions(tokenizer: Tokenizer) -> None:
    body = {
        **ROUTED,
        "prompt": "Hello",
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "stop": "x",
        "model": "any",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    plan = plan_completion(json.dumps(body).encode(), tokenizer, PREFILL_LIMITS)
    sampling = plan.items[0].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.seed, sampling.stop) == (7, 0.5, 3, ("x",))
    assert plan.include_usage and plan.stream
    batch = {**body, "prompt": [[1, 2], [3]], "bootstrap_room": [1, 2]}
    assert len(plan_completion(json.dumps(batch).encode(), tokenizer, PREFILL_LIMITS).items) == 2


CHAT = {**ROUTED, "messages": [{"role": "user", "content": "Hello"}]}
NAMED = Limits(PREFILL, 1024, 200, 4, "round_robin", ("10.0.0.1:8998", "pod:8998"), "tiny-llama")


@pytest.mark.parametrize(("plan", "body"), [(plan_chat, CHAT), (plan_completion, {**ROUTED, "prompt": "Hello"})])
def test_temperature_is_openai_s_when_the_request_names_none(plan: Any, body: Any, tokenizer: Tokenizer) -> None:
    assert plan(json.dumps(body).encode(), tokenizer, PREFILL_LIMITS).items[0].sampling.temperature == 1
    greedy = json.dumps({**body, "temperature": 0}).encode()
    assert plan(greedy, tokenizer, PREFILL_LIMITS).items[0].sampling.temperature == 0
    assert generate(tokenizer).items[0].sampling.temperature == 0


@pytest.mark.parametrize(("plan", "body"), [(plan_chat, CHAT), (plan_completion, {**ROUTED, "prompt": "Hello"})])
def test_a_model_is_refused_when_another_is_served(plan: Any, body: Any, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelUnknown) as refused:
        plan(json.dumps({**body, "model": "gpt-4o"}).encode(), tokenizer, NAMED)
    assert refused.value.status == 404
    error = refused.value.to_json()["error"]
    assert error["message"] == "the model 'gpt-4o' does not exist: 'tiny-llama' does"
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    for model in ("tiny-llama", "unknown", None):
        assert plan(json.dumps({**body, "model": model}).encode(), tokenizer, NAMED)


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"n": 2}, "n", "is not implemented; leave it out or at 1"),
        ({"logprobs": True}, "logprobs", "is not implemented; leave it out or at False"),
        ({"logprobs": 0}, "logprobs", "is not implemented; leave it out or at False"),
        ({"logprobs": True, "top_logprobs": 5, "n": 2}, "n", "is not implemented; leave it out or at 1"),
        ({"top_logprobs": 5}, "top_logprobs", "is not implemented; leave it out or at 0"),
    ],
)
def test_what_is_not_there_is_one_clear_400(
    fields: dict[str, Any], field: str, rule: str, tokenizer: Tokenizer
) -> None:
    for plan, body in ((plan_chat, CHAT), (plan_completion, {**ROUTED, "prompt": "Hello"})):
        with pytest.raises(BadRequest) as refused:
            plan(json.dumps({**body, **fields}).encode(), tokenizer, NAMED)
        assert refused.value.status == 400
        assert str(refused.value) == f"{field}: {rule}"


def test_the_role_is_told_once_when_a_chat_is_streamed(tokenizer: Tokenizer) -> None:
    plan = plan_chat(json.dumps({**CHAT, "stream": True}).encode(), tokenizer, NAMED)
    answer = Answer(plan.items[0], "id", 0, PREFILL, 0.0, False)
    shape, chunks = ChatShape(plan, "tiny-llama", "chatcmpl-1"), []
    for text, ending in (("Hel", None), ("lo", None), ("", {"type": "length"})):
        answer.add(Update(id=1, text=text, token_ids=[1], finish_reason=ending))
        chunks.append(shape.event(answer)["choices"][0])
    assert [chunk["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Hel"},
        {"content": "lo"},
        {"content": ""},
    ]
    assert [chunk["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert shape.whole([answer])["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}


def test_chat(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    body = {**ROUTED, "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 9}
    [item] = plan_chat(json.dumps(body).encode(), tokenizer, PREFILL_LIMITS).items
    assert item.input_ids == tokenizer.encode(
        tokenizer.render_chat([{"role": "user", "content": "Hello"}]), special=False
    )
    assert item.sampling.max_new_tokens == 9


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 3}, "n"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools"),
    ],
)
def test_bad_chats(tokenizer: Tokenizer, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        plan_chat(json.dumps({**ROUTED, **fields}).encode(), tokenizer, PREFILL_LIMITS)
    assert caught.value.details["field"] == field
