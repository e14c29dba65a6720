"""Whatever joins and leaves a running batch, every request gets the tokens of the plain model."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings, strategies as st

from etcd_pd.reference.engine.decode_batch import PaddedBatch
from etcd_pd.reference.engine.kv import KVCache
from etcd_pd.reference.engine.messages import Sampling
from etcd_pd.reference.engine.model import Model
from etcd_pd.reference.engine.reference import generate

#: Rounding errors of one step are some 1e-6; a smaller distance between two logits could flip a greedy choice.
SAFE_MARGIN = 1e-4


def prefill(model: Model, ids: list[int], chunk: int) -> tuple[KVCache, int]:
    """A prompt's KV cache as decode gets it, and its first token."""
    prompt = model.start()
    for start in range(0, len(ids), chunk):
        logits = model.extend(prompt, ids[start : start + chunk])
    cache = model.export(prompt)
    return KVCache.from_bytes(cache.to_bytes(), model.layout, len(ids)), int(logits.argmax())


def run_batch(model: Model, prompts: list[list[int]], lengths: list[int], draw: random.Random) -> list[list[int]]:
    """Generate with random joins and leaves between the steps."""
    batch = model.batch()
    waiting = list(range(len(prompts)))
    rows: list[int] = []
    out: list[list[int]] = [[] for _ in prompts]
    while waiting or rows:
        while waiting and (not rows or draw.random() < 0.4):
            index = waiting.pop(0)
            cache, first = prefill(model, prompts[index], draw.choice([3, 16, 512]))
            out[index].append(first)
            if lengths[index] > 1:
                batch.join(cache)
                rows.append(index)
        if not rows:
            continue
        tokens = batch.step([out[index][-1] for index in rows]).argmax(-1).tolist()
        for row in range(len(rows) - 1, -1, -1):
            out[rows[row]].append(tokens[row])
            if len(out[rows[row]]) == lengths[rows[row]]:
                batch.leave(row)
                rows[row] = rows[-1]
                rows.pop()
    assert len(batch) == 0
    return out


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_joins_and_leaves_change_no_token(model: Model, seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 7)
    prompts = [[draw.randrange(1024) for _ in range(draw.randint(1, 150))] for _ in range(count)]
    lengths = [draw.randint(1, 25) for _ in range(count)]
    batched = run_batch(model, prompts, lengths, draw)
    for ids, length, tokens in zip(prompts, lengths, batched, strict=True):
        expected = generate(model, ids, Sampling(max_new_tokens=length))
        if expected.smallest_margin > SAFE_MARGIN:
            assert tokens == expected.token_ids


def test_a_wrong_kv_cache_gives_wrong_tokens(model: Model) -> None:
    """Else the comparison above would prove nothing."""
    ids, others = list(range(100, 140)), list(range(200, 240))
    plain = generate(model, ids, Sampling(max_new_tokens=20)).token_ids
    _, first = prefill(model, ids, 512)
    wrong, _ = prefill(model, others, 512)
    batch = model.batch()
    batch.join(wrong)
    tokens = [first]
    for _ in range(19):
        tokens.append(int(batch.step([tokens[-1]])[0].argmax()))
    assert tokens != plain


def test_one_wrong_number_in_the_cache_shows_in_the_logits(model: Model) -> None:
    cache, first = prefill(model, list(range(300, 340)), 512)
    damaged = KVCache(tuple((keys.clone(), values.clone()) for keys, values in cache.layers))
    damaged.layers[0][1][0, 7, 3] += 1.0
    logits = []
    for one in (cache, damaged):
        batch = model.batch()
        batch.join(one)
        logits.append(batch.step([first])[0])
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_a_batch_grows_beyond_its_first_size(model: Model) -> None:
    ids = list(range(50, 60))
    expected = generate(model, ids, Sampling(max_new_tokens=200)).token_ids
    cache, first = prefill(model, ids, 512)
    batch = model.batch()
    assert isinstance(batch, PaddedBatch)
    batch.join(cache)
    tokens = [first]
    for _ in range(199):
        tokens.append(int(batch.step([tokens[-1]])[0].argmax()))
    assert tokens == expected
