"""Loads are what is in flight, and the dead get nothing."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd.reference.balance import Load
from etcd_pd.reference.engine.dispatch import Dispatcher, Replies
from etcd_pd.reference.engine.errors import RequestFailed
from etcd_pd.reference.engine.messages import Sampling, Update
from etcd_pd.reference.engine.requests import DECODE, PREFILL, Item


def item(room: int = 1, tokens: int = 10, routed: int | None = None) -> Item:
    return Item(room, "h:1", [0] * tokens, Sampling(), False, routed, None)


def serving(role: str, policy: str, dp_size: int) -> Dispatcher:
    dispatcher = Dispatcher(role, policy, dp_size)
    for dp_rank in range(dp_size):
        dispatcher.serve(dp_rank)
    return dispatcher


def test_loads_follow_what_happens() -> None:
    dispatcher, replies = serving(PREFILL, "total_tokens", 2), Replies()
    taken = [dispatcher.take(item(tokens=tokens), 0, replies) for tokens in (10, 4, 5)]
    assert [dp_rank for dp_rank, _ in taken] == [0, 1, 1]
    assert dispatcher.loads == [Load(1, 10, waiting_tokens=10), Load(2, 9, waiting_tokens=9)]
    dispatcher.begin(0, taken[0][1])
    dispatcher.begin(0, 99)
    assert dispatcher.loads[0] == Load(1, 10, waiting_tokens=0)
    dispatcher.update(1, Update(id=taken[1][1], token_ids=[1, 2, 3]))
    assert dispatcher.loads[1] == Load(2, 12, waiting_tokens=5)
    dispatcher.update(1, Update(id=taken[1][1], token_ids=[4], finish_reason={"type": "length"}))
    assert dispatcher.loads[1] == Load(1, 5, waiting_tokens=5)
    assert dispatcher.give_up(1, taken[2][1])
    assert not dispatcher.give_up(1, taken[2][1])
    dispatcher.fail(0, [taken[0][1], 99], RequestFailed(500, "x", "y"))
    assert dispatcher.idle


def test_how_prompts_end_is_counted_once() -> None:
    dispatcher, replies = serving(DECODE, "round_robin", 2), Replies()
    ids = [dispatcher.take(item(), 0, replies)[1] for _ in range(4)]
    dispatcher.update(0, Update(id=ids[0], token_ids=[1], meta={"kv_bytes": 100, "kv_seconds": 0.5}))
    dispatcher.update(0, Update(id=ids[0], token_ids=[2, 3], finish_reason={"type": "length"}))
    dispatcher.update(0, Update(id=ids[0], token_ids=[4]))
    dispatcher.fail(1, [ids[1], ids[1]], RequestFailed(500, "PrefillLost", "gone"))
    assert dispatcher.give_up(0, ids[2]) and not dispatcher.give_up(0, ids[2])
    dispatcher.lose(1, RequestFailed(500, "RankDied", "gone"))
    served = dispatcher.served
    assert served.ended == {("0", "Finished"): 1, ("1", "PrefillLost"): 1, ("0", "Aborted"): 1, ("1", "RankDied"): 1}
    assert served.tokens == {"0": 3}
    assert (served.ttft_seconds.count, served.kv_seconds.count, served.kv_bytes) == (1, 1, 100)


def test_the_dead_get_nothing_and_lose_what_they_had() -> None:
    dispatcher, replies = serving(PREFILL, "round_robin", 3), Replies()
    _, id = dispatcher.take(item(routed=1), 4, replies)
    dispatcher.lose(1, RequestFailed(500, "RankDied", "gone", dp_rank=1))
    with pytest.raises(RequestFailed, match="gone"):
        asyncio.run(replies.next())
    assert {dispatcher.take(item(), 0, replies)[0] for _ in range(10)} == {0, 2}
    with pytest.raises(RequestFailed) as caught:
        dispatcher.take(item(routed=1), 0, replies)
    assert (caught.value.status, caught.value.type) == (503, "NoServingRank")
    dispatcher.update(1, Update(id=id))


def test_nobody_serves_before_it_says_so() -> None:
    with pytest.raises(RequestFailed, match="no dp_rank is serving"):
        Dispatcher(PREFILL, "total_requests", 2).take(item(), 0, Replies())


def test_named_ranks_do_not_use_up_turns() -> None:
    dispatcher, replies = serving(PREFILL, "round_robin", 4), Replies()
    ranks = [dispatcher.take(item(routed=routed), 0, replies)[0] for routed in (None, 3, None, 3, None)]
    assert ranks == [0, 3, 1, 3, 2]


def test_a_prefill_rank_s_name_means_nothing_to_decode_s_only_rank() -> None:
    assert serving(DECODE, "round_robin", 1).take(item(routed=3), 0, Replies())[0] == 0


def test_replies_keep_their_places() -> None:
    dispatcher, replies = serving(DECODE, "round_robin", 2), Replies()
    first = dispatcher.take(item(), 0, replies)
    second = dispatcher.take(item(), 1, replies)
    dispatcher.update(second[0], Update(id=second[1], text="b"))
    dispatcher.update(first[0], Update(id=first[1], text="a"))

    async def both() -> list[tuple[int, str]]:
        return [(index, update.text) for index, update in (await replies.next(), await replies.next())]

    assert asyncio.run(both()) == [(1, "b"), (0, "a")]
