"""The same fleet, longer: harm under load, restarts, an older release on one side, and requests of every shape."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import requests

from .fleet import SESSION_SECONDS, Fleet
from .processes import Answer, body, post
from .test_fleet import expected, serve

pytestmark = pytest.mark.timeout(600)


# --- harm under load


@contextmanager
def load(fleet: Fleet, *, at_once: int = 4) -> Iterator[None]:
    """So many requests under way at any time; all of them are served, with one server's tokens."""
    router, began = fleet.router(), time.monotonic()
    numbers = [expected(fleet, number) for number in range(8)]
    served, slowest = 0, 0.0
    failures: list[tuple[Answer, Answer]] = []
    stopping = False

    def run(worker: int) -> None:
        nonlocal served, slowest
        while not stopping:
            number, sent = random.randrange(8), time.monotonic()
            prefill, decode = router.ask(number, timeout=120.0)
            slowest = max(slowest, time.monotonic() - sent)
            if prefill.status == decode.status == 200 and decode.tokens == numbers[number]:
                served += 1
            else:
                failures.append((prefill, decode))

    workers = [fleet.pool.submit(run, worker) for worker in range(at_once)]
    try:
        yield
        time.sleep(2)
    finally:
        stopping = True
        for worker in workers:
            worker.result()
        took = time.monotonic() - began
        print(f"{served} requests in {took:.1f} s, the slowest {slowest:.2f} s, {len(failures)} failed")
    assert not failures, failures[:3]
    assert served > at_once


@pytest.mark.parametrize("seconds", [2.0, 8.0, 40.0])
def test_requests_are_served_when_etcd_is_frozen_under_load(fleet: Fleet, seconds: float) -> None:
    with load(fleet), fleet.frozen_etcd():
        time.sleep(seconds)
    serve(fleet, 4)


@contextmanager
def killed(fleet: Fleet, side: str, seconds: float) -> Iterator[None]:
    agent = fleet.agents[side]
    agent.stop(signal.SIGKILL)
    try:
        time.sleep(seconds)
        yield
    finally:
        agent.start()


@contextmanager
def frozen(fleet: Fleet, side: str, seconds: float) -> Iterator[None]:
    agent = fleet.agents[side]
    agent.pause()
    try:
        time.sleep(seconds)
        yield
    finally:
        agent.resume()


@pytest.mark.parametrize("seconds", [0.5, SESSION_SECONDS], ids=["briefly", "longer than its session"])
@pytest.mark.parametrize("harm", [killed, frozen])
@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_requests_are_served_when_an_agent_is_away_under_load(
    fleet: Fleet, side: str, harm: Callable[[Fleet, str, float], AbstractContextManager[None]], seconds: float
) -> None:
    with load(fleet):
        time.sleep(1)
        with harm(fleet, side, seconds):
            pass
        time.sleep(1)
    serve(fleet, 4)


# --- restarts


@pytest.mark.parametrize("side", ["prefills", "decodes"])
def test_requests_are_served_when_one_side_was_restarted(fleet: Fleet, side: str) -> None:
    server = getattr(fleet, side)[True]
    server.stop()
    server.start()
    server.await_healthy()
    serve(fleet, 8)


# --- requests of every shape


def test_samples_of_a_request_end_as_with_sglang_alone_when_they_share_a_room(fleet: Fleet) -> None:
    """SGLang gives all of them the same room, and its decode then hangs: with the plug-in it does no worse."""
    sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True, "n": 2}
    answers = {on: fleet.router(on, on).ask(1, timeout=30.0, sampling_params=sampling) for on in (True, False)}
    said = {plugin: [answer.status for answer in both] for plugin, both in answers.items()}
    print(f"status at prefill and decode, 0 for none in 30 s: with the plug-in {said[True]}, without {said[False]}")
    assert said[True][1] in (said[False][1], 200, 500)
    serve(fleet, 4)


def test_a_batch_is_served_when_each_of_its_requests_has_a_room(fleet: Fleet) -> None:
    rooms = [random.getrandbits(63) for _ in range(3)]
    place: dict[str, Any] = {"bootstrap_host": ["127.0.0.1"] * 3, "bootstrap_port": [fleet.bootstrap_port()] * 3}
    texts = [body(number)["text"] for number in range(3)]
    prefill, decode = fleet.router().ask(0, timeout=60.0, text=texts, bootstrap_room=rooms, **place)
    assert prefill.status == decode.status == 200, (prefill, decode)
    assert [one["output_ids"] for one in json.loads(decode.text)] == [expected(fleet, number) for number in range(3)]


def test_a_room_is_served_again_when_it_was_used_before(fleet: Fleet) -> None:
    room = random.getrandbits(63)
    for number in range(3):
        prefill, decode = fleet.router().ask(number, room)
        assert prefill.status == 200, prefill
        assert decode.tokens == expected(fleet, number)


def test_a_room_is_served_when_it_failed_before(fleet: Fleet) -> None:
    room = random.getrandbits(63)
    refused, _ = fleet.router().ask(0, room, text=" ".join(["w7"] * 1500))
    assert refused.status == 400
    prefill, decode = fleet.router().ask(1, room)
    assert prefill.status == 200, prefill
    assert decode.tokens == expected(fleet, 1)


def test_a_fake_bootstrap_host_is_served_without_a_room_in_the_registry(fleet: Fleet) -> None:
    """SGLang's own health checks and warm-up of a disaggregated server are such requests."""
    room = random.getrandbits(63)
    place: dict[str, Any] = {"bootstrap_host": "2.2.2.2", "bootstrap_port": 1, "bootstrap_room": room}
    for server in (fleet.prefills[True], fleet.decodes[True]):
        assert post(server.port, body(1, **place), 30).status == 200
        assert requests.get(f"http://127.0.0.1:{server.port}/health_generate", timeout=60).status_code == 200
    assert room not in fleet.rooms()


def test_decode_ends_a_request_when_nobody_registers_its_room(fleet: Fleet) -> None:
    began = time.monotonic()
    answer = fleet.router().send_decode(1, random.getrandbits(63), 100.0).result()
    print(f"{time.monotonic() - began:.1f} s: {answer.text[:200]}")
    assert answer.status == 500 and "before the deadline" in answer.text
