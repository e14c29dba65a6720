"""A room's way through the whole stack, seen by an etcd client that shares nothing with etcd_pd."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.running import Reply, RunningStack, generation, post_all
from tests.support.waiting import wait_until

PROMPT = "The harbour wakes before the town does. "


def send(stack: RunningStack, count: int) -> list[Reply]:
    """So many prompts of different length through the router, all at once; all must be served."""
    requests = [(f"{stack.router}/generate", generation(PROMPT * number)) for number in range(1, count + 1)]
    with ThreadPoolExecutor(count) as pool:
        replies = [reply.result() for reply in post_all(pool, requests)]
    assert [reply.status for reply in replies] == [200] * count, replies
    return replies


def test_every_room_in_flight_has_a_key_with_a_live_lease_that_names_the_right_rank(stack: RunningStack) -> None:
    requests = [(f"{stack.router}/generate", generation(PROMPT * number)) for number in range(1, 9)]
    with ThreadPoolExecutor(len(requests)) as pool:
        with stack.decodes_frozen():
            replies = post_all(pool, requests)
            keys = stack.wait_for_rooms(len(requests))
            leases = {kv.lease: stack.ctl.lease(kv.lease) for kv in keys.values()}
        told = {reply.result().told["bootstrap_room"]: reply.result().told for reply in replies}
    assert told.keys() == keys.keys()
    for room, kv in keys.items():
        value = json.loads(kv.value)
        assert leases[kv.lease].ttl > 0
        assert kv.key in leases[kv.lease].keys
        assert value["dp_rank"] == told[room]["dp_rank"]
        assert value["epoch"] == told[room]["epoch"]
        assert kv.create_revision == told[room]["revision"]
        assert kv.lease == told[room]["lease_id"]
        assert told[room]["source"] == "registry"
    # round robin: every rank in turn, whatever the room's number
    assert sorted(answer["dp_rank"] for answer in told.values()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_keys_and_leases_of_rooms_are_gone_after_release(stack: RunningStack) -> None:
    stack.wait_until_empty()
    wait_until(lambda: len(stack.ctl.leases()) == len(stack.sockets), "only the agents' session leases are left")
    replies = send(stack, 6)
    assert len({reply.told["lease_id"] for reply in replies}) < len(replies), "rooms share leases"
    stack.wait_until_empty()
    wait_until(lambda: len(stack.ctl.leases()) == len(stack.sockets), "only the agents' session leases are left")


def test_decode_learns_through_the_watch_and_asks_for_no_room(stack: RunningStack) -> None:
    send(stack, 4)
    stack.wait_until_empty()
    before = {method: stack.ctl.calls(method) for method in ("Range", "Txn")}
    watches = stack.ctl.calls("Watch", "Watch")
    send(stack, 24)
    assert stack.ctl.calls("Range") == before["Range"]
    assert stack.ctl.calls("Watch", "Watch") == watches
    # rooms are written and released in batches: far fewer transactions than two a room would be
    assert before["Txn"] < stack.ctl.calls("Txn") <= before["Txn"] + 48
