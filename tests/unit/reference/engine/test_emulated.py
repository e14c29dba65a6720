"""The cost model takes its stated time, and its tokens show whether the right cache arrived."""

from __future__ import annotations

import time

import torch

from etcd_pd.reference.engine.emulated import EmulatedModel
from etcd_pd.reference.engine.kv import KVCache
from etcd_pd.reference.engine.messages import Sampling, Work
from etcd_pd.reference.engine.prompt_queue import PromptQueue


def run(model: EmulatedModel, ids: list[int], steps: int) -> list[int]:
    prompt = model.start()
    tokens = [int(model.extend(prompt, ids).argmax())]
    cache = model.export(prompt)
    batch = model.batch()
    batch.join(KVCache.from_bytes(cache.to_bytes(), model.layout, len(ids)))
    for _ in range(steps):
        tokens.append(int(batch.step([tokens[-1]])[0].argmax()))
    return tokens


def test_time_is_what_was_stated() -> None:
    model = EmulatedModel(prefill_tokens_per_second=1000, decode_steps_per_second=50, vocabulary=100)
    started = time.monotonic()
    run(model, list(range(50)), steps=2)
    assert time.monotonic() - started >= 0.05 + 0.04


def test_tokens_follow_from_the_prompt_and_none_ends_the_text() -> None:
    model = EmulatedModel(1e9, 1e6, vocabulary=100)
    tokens = run(model, [5, 6, 7], 30)
    assert tokens == run(model, [5, 6, 7], 30)
    assert tokens != run(model, [5, 6, 8], 30)
    assert all(4 <= token < 100 for token in tokens)
    assert len(set(tokens)) > 5


def test_a_batch_keeps_its_rows_apart() -> None:
    model = EmulatedModel(1e9, 1e6, vocabulary=100)
    batch = model.batch()
    prompts = [[1, 2], [3, 4, 5], [6]]
    for ids in prompts:
        prompt = model.start()
        model.extend(prompt, ids)
        batch.join(model.export(prompt))
    batch.leave(0)
    assert len(batch) == 2
    logits = batch.step([9, 9])
    alone = model.batch()
    prompt = model.start()
    model.extend(prompt, [6])
    alone.join(model.export(prompt))
    assert torch.equal(logits[0], alone.step([9])[0])


def test_prompts_are_computed_in_chunks_in_their_order() -> None:
    queue = PromptQueue(EmulatedModel(1e9, 1e6, vocabulary=100), chunk_tokens=4)
    works = [
        Work(id=id, room=id, instance="h:1", input_ids=list(range(length)), sampling=Sampling(seed=5))
        for id, length in ((1, 9), (2, 1), (3, 4), (4, 30))
    ]
    for work in works:
        queue.add(work)
    queue.step()
    queue.remove(1)
    queue.remove(3)
    queue.remove(99)
    assert len(queue) == 2
    done = [queue.step() for _ in range(1 + 8)]
    finished = [one for one in done if one is not None]
    assert [work.id for work, _ in finished] == [2, 4]
    assert finished[1][1].tokens == 30
    assert finished[1][1].seed == 5
    assert queue.step() is None
