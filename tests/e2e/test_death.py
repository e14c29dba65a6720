"""A prefill rank that is killed takes its own rooms along, at once, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from tests.e2e.running import Reply, RunningStack, generation, post, post_all
from tests.support.etcdctl import KeyValue
from tests.support.waiting import wait_until

#: Long enough that a rank still computes when its key is seen.
PROMPT = [number % 1000 + 10 for number in range(8_000)]
RANKS = 4
ROOMS = range(1000, 1000 + 3 * RANKS)
#: Decode's own limit for a KV cache; whoever waits longer than that was not notified of the death.
DEADLINE_SECONDS = 60.0


def ask_both(pool: ThreadPoolExecutor, stack: RunningStack) -> tuple[dict[int, Future[Reply]], list[Future[Reply]]]:
    """One request a room to prefill and to decode, as the router does it; here the errors of both are seen."""
    bodies = {room: generation(PROMPT, 4, bootstrap_room=room, **stack.bootstrap) for room in ROOMS}
    prefills = post_all(pool, [(f"{stack.prefill}/generate", body) for body in bodies.values()])
    decodes = post_all(pool, [(f"{stack.decodes[room % 2]}/generate", body) for room, body in bodies.items()])
    return dict(zip(bodies, decodes, strict=True)), prefills


def ranks_of(rooms: dict[int, KeyValue]) -> dict[int, int]:
    return {room: json.loads(kv.value)["dp_rank"] for room, kv in rooms.items()}


def test_a_killed_rank_fails_its_rooms_at_once_and_the_others_go_on(start_stack: Callable[..., RunningStack]) -> None:
    stack = start_stack()
    pids = stack.rank_pids()
    with ThreadPoolExecutor(2 * len(ROOMS)) as pool:
        decodes, prefills = ask_both(pool, stack)
        rank_of = ranks_of(stack.wait_for_rooms(len(ROOMS)))
        victim = rank_of[ROOMS[-1]]
        lost = {room for room, rank in rank_of.items() if rank == victim}
        killed_at = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)

        failed = {room: decodes[room].result() for room in lost}
        assert {reply.status for reply in failed.values()} == {500}
        # the registry says it, or prefill's front, which sees the process end: whichever is first
        assert {reply.error for reply in failed.values()} <= {"PrefillLost", "PrefillFailed"}, failed
        assert {reply.body["error"]["dp_rank"] for reply in failed.values()} == {victim}, failed
        assert time.monotonic() - killed_at < DEADLINE_SECONDS
        assert any(not decodes[room].done() for room in ROOMS if room not in lost), "the others were still busy"

        served = {room: decodes[room].result().told for room in ROOMS if room not in lost}
        assert {room: told["dp_rank"] for room, told in served.items()} == {
            room: rank for room, rank in rank_of.items() if rank != victim
        }
        assert sorted(reply.result().status for reply in prefills) == [200] * len(served) + [500] * len(lost)

    # the dead rank's keys stay until their lease ends, but under an epoch that is over: nobody follows them
    wait_until(lambda: stack.rooms().keys() <= lost, "only the dead rank's keys are left")
    assert all(room["state"] == "lost" for room in stack.show("rooms")["rooms"])
    ranks_prefix = stack.rooms_prefix.replace("/rooms/", "/prefill/") + "prefill-0/ranks/"
    living = {int(kv.key.removeprefix(ranks_prefix).partition(".")[0]) for kv in stack.ctl.get_prefix(ranks_prefix)}
    assert living == set(range(RANKS)) - {victim}
    after = [post(f"{stack.router}/generate", generation("Still here?")) for _ in range(2 * RANKS)]
    assert {reply.told["dp_rank"] for reply in after} == living
