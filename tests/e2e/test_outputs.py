"""What the stack generates is what the model generates alone, token by token."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.running import RunningStack, generation, get_json, post_all

TEXTS = [
    "Why?",
    "Bread needs less work than people think, and more time. " * 3,
    "Every river on the map is drawn as a line, but a river is a habit of water. " * 12,
    "naïve 東京 \N{SNOWMAN}",
]
MAX_NEW_TOKENS = 24


@pytest.fixture(scope="module")
def expected(stack: RunningStack) -> list[list[int]]:
    """The model's own continuation of each text, in this process."""
    from etcd_pd.reference.engine.card import go_offline

    go_offline()
    from etcd_pd.reference.engine.card import read_card
    from etcd_pd.reference.engine.messages import Sampling
    from etcd_pd.reference.engine.model import Model
    from etcd_pd.reference.engine.reference import generate
    from etcd_pd.reference.engine.settings import PrefillSettings
    from etcd_pd.reference.engine.text import Tokenizer

    path = get_json(f"{stack.prefill}/model_info")["model_path"]
    model, tokenizer, ends = Model(path), Tokenizer(path), read_card(path, PrefillSettings()).end_tokens
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
    return [generate(model, tokenizer.encode(text), sampling, ends).token_ids for text in TEXTS]


def test_plain_answers_are_equal(stack: RunningStack, expected: list[list[int]]) -> None:
    requests = [(f"{stack.router}/generate", generation(text, MAX_NEW_TOKENS)) for text in TEXTS]
    with ThreadPoolExecutor(len(requests)) as pool:
        replies = [reply.result() for reply in post_all(pool, requests)]
    assert [reply.body["output_ids"] for reply in replies] == expected


def test_streamed_answers_are_equal(stack: RunningStack, expected: list[list[int]]) -> None:
    for text, tokens in zip(TEXTS, expected, strict=True):
        events = stream(f"{stack.router}/generate", generation(text, MAX_NEW_TOKENS, stream=True))
        assert events[-1]["output_ids"] == tokens
        counts = [len(event["output_ids"]) for event in events]
        assert counts == sorted(counts) and counts[0] < counts[-1]


def stream(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line.strip().removeprefix(b"data: ") for line in answer if line.strip()]
    assert lines.pop() == b"[DONE]"
    return [json.loads(line) for line in lines]
