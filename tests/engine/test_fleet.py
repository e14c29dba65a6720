"""Requests through SGLang's own engines end as they would without etcd_pd, or better, whatever of it is missing."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from concurrent.futures import Future

import pytest

from tests.support.waiting import wait_until

from .fleet import ROOT, SESSION_SECONDS, Fleet
from .processes import Answer, body, post

pytestmark = [pytest.mark.quick, pytest.mark.timeout(400)]


def serve(fleet: Fleet, count: int, *, prefill: bool = True, decode: bool = True, timeout: float = 60.0) -> None:
    """So many requests at once are served, with one server's tokens."""
    router = fleet.router(prefill, decode)
    sent = [router.send(number, timeout=timeout) for number in range(count)]
    for number, (at_prefill, at_decode) in enumerate(sent):
        assert at_prefill.result().status == 200, at_prefill.result()
        assert at_decode.result().tokens == expected(fleet, number)


_expected: dict[int, list[int]] = {}


def expected(fleet: Fleet, number: int) -> list[int]:
    if number not in _expected:
        _expected[number] = post(fleet.single.port, body(number)).tokens
    return _expected[number]


def send_to_a_stopped_rank(fleet: Fleet, number: int) -> tuple[int, Future[Answer], Future[Answer]]:
    """A request that decode knows the rank of, which is stopped and has sent nothing; the rank and both answers."""
    router, room = fleet.router(), random.getrandbits(63)
    at_prefill = router.send_prefill(number, room, timeout=100.0)
    value = wait_until(lambda: fleet.rooms().get(room), "the room is registered")
    rank = int(json.loads(value)["dp_rank"])
    fleet.prefills[True].signal_rank(rank, signal.SIGSTOP)
    before = fleet.resolved()
    at_decode = router.send_decode(number, room, timeout=100.0)
    wait_until(lambda: fleet.resolved() > before, "decode knows the rank")
    return rank, at_prefill, at_decode


@pytest.mark.parametrize("decode", [True, False], ids=["decode with", "decode without"])
@pytest.mark.parametrize("prefill", [True, False], ids=["prefill with", "prefill without"])
def test_tokens_are_those_of_one_server_when_one_or_both_sides_have_the_plug_in(
    fleet: Fleet, prefill: bool, decode: bool
) -> None:
    serve(fleet, 8, prefill=prefill, decode=decode)


def test_both_sides_say_what_they_are_connected_to_when_they_have_started(fleet: Fleet) -> None:
    agents = fleet.agents.values()
    for server, agent in zip((fleet.prefills[True], fleet.decodes[True]), agents, strict=True):
        line = (
            f"etcd_pd: connected to the agent at {agent.socket_path}; without it, SGLang's own bootstrap server is used"
        )
        assert line in server.log
    assert "etcd_pd" not in fleet.prefills[False].log and "etcd_pd" not in fleet.decodes[False].log
    assert fleet.ctl.get_prefix(f"{ROOT}/v1/decode/")[0].key.endswith("/decode-0")
    fingerprint = json.loads(fleet.ctl.get_prefix(f"{ROOT}/v1/prefill/prefill-0")[0].value)["fingerprint"]
    assert re.fullmatch(
        r"model=[0-9a-f]{16} sglang=0\.5\.23 tp_size=1 pp_size=1 page_size=1 kv_cache_dtype=\S+", fingerprint
    ), fingerprint


def test_decode_ends_a_request_at_once_when_prefill_refuses_it_before_it_has_a_room(fleet: Fleet) -> None:
    began = time.monotonic()
    prompt = " ".join(["w7"] * 1500)  # more than prefill has place for
    at_prefill, at_decode = fleet.router().ask(0, timeout=100.0, text=prompt)
    took = time.monotonic() - began
    assert at_prefill.status == 400, at_prefill
    assert at_decode.status == 500 and "refused the request" in at_decode.text, at_decode
    print(f"decode ended it after {took:.2f} s")
    assert took < 10


def test_requests_are_served_when_the_agent_of_decode_is_dead(fleet: Fleet) -> None:
    fleet.agents["decode"].stop(signal.SIGKILL)
    try:
        serve(fleet, 4)
    finally:
        fleet.agents["decode"].start()
    serve(fleet, 4)


def test_requests_are_served_when_the_agent_of_prefill_is_dead_for_longer_than_its_session(fleet: Fleet) -> None:
    fleet.agents["prefill"].stop(signal.SIGKILL)
    try:
        serve(fleet, 4)
        time.sleep(SESSION_SECONDS)
        serve(fleet, 4)
    finally:
        fleet.agents["prefill"].start()
    serve(fleet, 4)
    wait_until(lambda: fleet.ctl.get_prefix(f"{ROOT}/v1/prefill/prefill-0/ranks/"), "its ranks are back")
    serve(fleet, 4)


def test_a_transfer_goes_on_when_the_session_of_prefills_agent_ends(fleet: Fleet) -> None:
    """The rank is stopped while decode knows it and waits for the KV cache; its agent dies meanwhile."""
    rank, at_prefill, at_decode = send_to_a_stopped_rank(fleet, 5)
    try:
        fleet.agents["prefill"].stop(signal.SIGKILL)
        time.sleep(SESSION_SECONDS)
    finally:
        fleet.agents["prefill"].start()
        fleet.prefills[True].signal_rank(rank, signal.SIGCONT)
    assert at_prefill.result().status == 200, at_prefill.result()
    assert at_decode.result().tokens == expected(fleet, 5)


def test_what_waits_lands_when_etcd_is_frozen_for_longer_than_a_session(fleet: Fleet) -> None:
    with fleet.frozen_etcd():
        sent = [fleet.router().send(number, timeout=100.0) for number in range(4)]
        time.sleep(8)
    for number, (at_prefill, at_decode) in enumerate(sent):
        assert at_prefill.result().status == 200, at_prefill.result()
        assert at_decode.result().tokens == expected(fleet, number)
    serve(fleet, 4)


def test_a_request_ends_at_once_when_its_rank_is_killed(fleet: Fleet) -> None:
    rank, at_prefill, at_decode = send_to_a_stopped_rank(fleet, 5)
    began = time.monotonic()
    fleet.prefills[True].signal_rank(rank, signal.SIGKILL)
    answer: Answer = at_decode.result()
    took = time.monotonic() - began
    print(f"decode ended it {took:.2f} s after the kill")
    assert answer.status == 500 and "is gone" in answer.text, answer
    assert took < 10
    assert at_prefill.result().status != 200
    fleet.prefills[True].stop()
    fleet.prefills[True].start()
    fleet.prefills[True].await_healthy()
    serve(fleet, 4)
