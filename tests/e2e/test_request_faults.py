"""Whatever part dies, each leg of each request ends: with the right tokens, or with a typed error, and soon.

``python -m pytest -q -rP tests/e2e/test_request_faults.py`` prints the rows of the table in docs/failure-model.md.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest

from etcd_pd.reference.local.probe import http_ok
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

from .fleet import DECODES, NAMES, PREFILL, Fleet, Load, Reply, frozen, summary, terminate

#: How long a registration waits for etcd here, seconds.
REGISTRATION_SECONDS = 5.0
#: What a leg may take after the fault, or after its own start, seconds. Ten times that fails the test.
PROMISED_SECONDS = 2.0


@pytest.fixture(autouse=True)
def _no_leaks() -> None:
    """The fleet's parts are started again by the tests; it ends all of them itself."""


class World:
    """The fleet and its etcd."""

    def __init__(self, fleet: Fleet, etcd: EtcdServer) -> None:
        self.fleet, self.etcd = fleet, etcd
        self.expected: dict[str, list[int]] = {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, _docker: None) -> Iterator[World]:
    flags = (f"--registration-timeout-seconds={REGISTRATION_SECONDS}",)
    with EtcdServer() as etcd, Fleet(tmp_path_factory.mktemp("fleet"), etcd.endpoint, "/faults", *flags) as fleet:
        yield World(fleet, etcd)


@dataclass(frozen=True)
class Fault:
    """One kind of harm.

    Attributes:
        act: does it; what it returns is undone when the load has gone on for a while.
        seconds: how long the load goes on after it.
        allowance: what a leg may take besides, seconds.
        dead: instances that cannot answer: their legs do not count.
        turned_away: instances whose /health must say 503 within a second.
        ended: instances that must end by themselves.
    """

    act: Callable[[World], Callable[[], object] | None]
    seconds: float = 3.0
    allowance: float = 0.0
    dead: tuple[str, ...] = ()
    turned_away: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    dp_size: int = 2


def rank_killed(name: str) -> Callable[[World], None]:
    def act(world: World) -> None:
        rank = psutil.Process(world.fleet.rank_pids(name)[0])
        rank.suspend()
        time.sleep(0.5)  # so that it dies with requests
        terminate(rank)

    return act


def engine_killed(name: str) -> Callable[[World], None]:
    def act(world: World) -> None:
        terminate(psutil.Process(world.fleet.engines[name].pid))

    return act


def agent_killed(name: str) -> Callable[[World], None]:
    def act(world: World) -> None:
        world.fleet.agents[name].stop(9)

    return act


def host_frozen(name: str) -> Callable[[World], Callable[[], object]]:
    def act(world: World) -> Callable[[], object]:
        stopped = frozen(world.fleet.stop_host(name))
        stopped.__enter__()
        return lambda: stopped.__exit__(None, None, None)

    return act


def drained(world: World) -> None:
    command = [sys.executable, "-m", "etcd_pd", "drain", "--socket", world.fleet.agents[PREFILL].socket_path]
    subprocess.run(command, check=True, timeout=60)


def etcd_frozen(world: World) -> Callable[[], object]:
    world.etcd.pause()
    return world.etcd.restore


def etcd_gone(world: World) -> Callable[[], object]:
    world.etcd.kill()
    return world.etcd.restore


FAULTS = {
    "one of two prefill ranks killed": Fault(rank_killed(PREFILL)),
    "prefill's only rank killed": Fault(rank_killed(PREFILL), ended=(PREFILL,), dp_size=1),
    "decode's only rank killed": Fault(rank_killed("decode-0"), ended=("decode-0",)),
    "prefill's main process killed": Fault(engine_killed(PREFILL), dead=(PREFILL,)),
    "decode's main process killed": Fault(engine_killed("decode-0"), dead=("decode-0",)),
    "prefill's agent killed": Fault(agent_killed(PREFILL), turned_away=(PREFILL,)),
    "decode's agent killed": Fault(agent_killed("decode-0"), turned_away=("decode-0",)),
    "prefill's host frozen": Fault(host_frozen(PREFILL), dead=(PREFILL,)),
    "decode's host frozen": Fault(host_frozen("decode-0"), dead=("decode-0",)),
    "etcd frozen for 2 s": Fault(etcd_frozen, 2.0, allowance=2.0),
    "etcd frozen for 9 s": Fault(etcd_frozen, 9.0, allowance=REGISTRATION_SECONDS),
    "etcd frozen for 40 s": Fault(etcd_frozen, 40.0, allowance=REGISTRATION_SECONDS),
    "etcd gone": Fault(etcd_gone, 12.0, allowance=REGISTRATION_SECONDS),
    "prefill drained": Fault(drained, turned_away=(PREFILL,)),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FAULTS)
def test_every_leg_ends_soon_and_typed_when(name: str, world: World) -> None:
    fault, fleet = FAULTS[name], world.fleet
    if fleet.dp_size != fault.dp_size:
        fleet.restart(PREFILL, fault.dp_size)
    fleet.mend()
    with Load(fleet) as load:
        time.sleep(1.0)
        undo = fault.act(world)
        at = time.monotonic()
        for instance in fault.turned_away:
            wait_until(lambda: not healthy(world, instance), f"{instance} is turned away from", 10.0)  # noqa: B023
            print(f"{instance}: /health said 503 after {time.monotonic() - at:.2f} s")
            assert http_ok(f"{fleet.urls[instance]}/liveness")
        for instance in fault.ended:
            wait_until(lambda: fleet.engines[instance].exit_status is not None, f"{instance} ends", 20.0)  # noqa: B023
            print(f"{instance}: ended after {time.monotonic() - at:.2f} s")
        time.sleep(max(0.0, fault.seconds - (time.monotonic() - at)))
        others = [instance for instance in NAMES if instance not in (*fault.turned_away, *fault.ended, *fault.dead)]
        if not fault.turned_away and not fault.ended and not fault.dead:
            assert all(healthy(world, instance) for instance in others), "never for etcd alone"
        if undo:
            undo()
            time.sleep(1.0)
    judge(name, world, load.replies, at, fault)
    if fault.act is drained:
        fleet.restart(PREFILL)  # it cannot be taken back


def healthy(world: World, instance: str) -> bool:
    return http_ok(f"{world.fleet.urls[instance]}/health")


def judge(name: str, world: World, replies: list[Reply], at: float, fault: Fault) -> None:
    """Fail where a leg hung, was answered wrongly, or with something that says nothing."""
    counted = [reply for reply in replies if reply.instance not in fault.dead]
    slowest = max(reply.ended - max(at, reply.started) for reply in counted)
    print(f"| {name} | {len(replies)} | {summary(replies)} | {slowest:.2f} |")
    for reply in counted:
        if reply.status == 200:
            assert reply.tokens == world.expected.setdefault(f"{reply.instance[0]} {reply.prompt}", reply.tokens), reply
        elif reply.status == 0:
            assert reply.instance in fault.ended, f"a living instance cut a connection: {reply}"
        else:
            assert reply.status >= 500 and reply.error["type"] and reply.error["message"], reply
            assert (reply.status == 503) is bool(reply.retry_after), reply
    assert sum(reply.status == 200 for reply in replies) > 8, "hardly anything was served"
    assert slowest < 10 * (PROMISED_SECONDS + fault.allowance), max(counted, key=lambda r: r.ended - max(at, r.started))


def test_requests_are_served_again_when_everything_is_back(world: World) -> None:
    world.fleet.mend()
    with Load(world.fleet) as load:
        time.sleep(2.0)
    assert {reply.status for reply in load.replies} == {200}, summary(load.replies)
    assert {reply.instance for reply in load.replies} == {PREFILL, *DECODES}
