"""When a request ends, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from etcd_pd.reference.engine.decode_batch import Batch
from etcd_pd.reference.engine.generation import Generation
from etcd_pd.reference.engine.kv import KVCache
from etcd_pd.reference.engine.messages import Sampling, Work
from etcd_pd.reference.engine.model import Model
from etcd_pd.reference.engine.reference import generate
from etcd_pd.reference.engine.running import Running
from etcd_pd.reference.engine.text import Tokenizer

END = frozenset([0])


def make(tokenizer: Tokenizer, sampling: Sampling, logprobs: bool = False, id: int = 1) -> Generation:
    work = Work(id=id, room=id, instance="h:1", input_ids=[5], sampling=sampling, logprobs=logprobs)
    return Generation(work, END, tokenizer, seed=3)


def push_all(generation: Generation, tokens: list[int]) -> None:
    for token in tokens:
        if generation.finished:
            break
        generation.push(token, -1.0)


def test_length(tokenizer: Tokenizer) -> None:
    generation = make(tokenizer, Sampling(max_new_tokens=3))
    push_all(generation, [300, 301, 302, 303])
    update = generation.take({"a": 1})
    assert update.token_ids == [300, 301, 302]
    assert update.text == tokenizer.decode([300, 301, 302])
    assert update.finish_reason == {"type": "length", "length": 3}
    assert update.meta == {"a": 1}


def test_nothing_is_generated_where_nothing_is_asked_for(tokenizer: Tokenizer) -> None:
    generation = make(tokenizer, Sampling(max_new_tokens=0))
    generation.push(300, 0.0)
    update = generation.take({})
    assert (update.token_ids, update.text) == ([], "")
    assert update.finish_reason == {"type": "length", "length": 0}


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason"),
    [
        (Sampling(), [300, 0, 301], {"type": "stop", "matched": 0}),
        (Sampling(stop_token_ids=(301,)), [300, 301, 302], {"type": "stop", "matched": 301}),
        (Sampling(ignore_eos=True, max_new_tokens=3), [300, 0, 301], {"type": "length", "length": 3}),
        (Sampling(ignore_eos=True, stop_token_ids=(301,)), [0, 301, 302], {"type": "stop", "matched": 301}),
    ],
)
def test_end_tokens(tokenizer: Tokenizer, sampling: Sampling, tokens: list[int], reason: dict[str, object]) -> None:
    generation = make(tokenizer, sampling)
    push_all(generation, tokens)
    update = generation.take({})
    assert update.finish_reason == reason
    # the token counts, its text does not
    taken = tokens[: len(update.token_ids)]
    assert update.text == tokenizer.decode(taken[:-1] if reason["type"] == "stop" else taken)


def test_a_stop_text_across_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("one two STOP three")
    generation = make(tokenizer, Sampling(stop=("two STOP",)))
    push_all(generation, tokens)
    update = generation.take({})
    assert update.text == "one "
    assert update.finish_reason == {"type": "stop", "matched": "two STOP"}
    assert len(update.token_ids) < len(tokens)


def test_logprobs_only_where_asked_for(tokenizer: Tokenizer) -> None:
    for wanted in (True, False):
        generation = make(tokenizer, Sampling(max_new_tokens=2), logprobs=wanted)
        generation.push(300, -0.5)
        generation.choose(torch.zeros(1024), 7)
        update = generation.take({})
        assert update.token_ids == [300, 7]
        assert update.logprobs == (pytest.approx([-0.5, -6.931472]) if wanted else [])


def cache_of(model: Model, ids: list[int]) -> tuple[KVCache, torch.Tensor]:
    prompt = model.start()
    logits = model.extend(prompt, ids)
    return model.export(prompt), logits


@pytest.mark.parametrize("company", [0, 1, 5])
def test_a_seed_gives_the_same_tokens_in_any_company(model: Model, tokenizer: Tokenizer, company: int) -> None:
    ids = list(range(400, 420))
    sampling = Sampling(max_new_tokens=16, temperature=0.9, top_p=0.95, seed=3)
    batch: Batch = model.batch()
    running = Running(batch)
    for other in range(company):
        generation = make(
            tokenizer, Sampling(max_new_tokens=5 + other, temperature=1.0, ignore_eos=True), id=10 + other
        )
        generation.push(500 + other, 0.0)
        running.join(generation, cache_of(model, list(range(other + 1, other + 30)))[0])
    mine = make(tokenizer, sampling)
    cache, logits = cache_of(model, ids)
    mine.choose(logits, int(logits.argmax()))
    running.join(mine, cache)
    while not mine.finished:
        running.step()
    assert mine.take({}).token_ids == generate(model, ids, sampling, END).token_ids


def test_who_has_ended_leaves_and_who_is_given_up_too(model: Model, tokenizer: Tokenizer) -> None:
    running = Running(model.batch())
    generations = []
    for number, length in enumerate((2, 4, 3)):
        generation = make(tokenizer, Sampling(max_new_tokens=length, ignore_eos=True), id=number)
        generation.push(300 + number, 0.0)
        running.join(generation, cache_of(model, [number + 1] * 10)[0])
        generations.append(generation)
    assert running.step() == generations
    assert len(running) == 2
    running.leave(generations[1])
    assert running.step() == [generations[2]]
    assert len(running) == 0
    assert running.step() == []
