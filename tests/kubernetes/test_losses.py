"""Pods, processes and all of etcd are lost under load, and come back by the commands of docs/operations.md."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.waiting import wait_until

from .kube import main_pid, name
from .load import ENGINE_LOST, ETCD_LOST
from .provider import Folder
from .release import STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_requests_end_in_time_when_an_engine_pod_is_force_deleted(release: Release, role: str) -> None:
    victim = name(release.fleet(role)[0])
    with release.load() as load:
        release.kube.kubectl("delete", "pod", victim, "--force", "--grace-period=0")
        wait_until(lambda: len(release.fleet(role)) == 2, "another pod takes its place", STEP_SECONDS, every=0.5)
        release.await_ready()
    assert load.wrong(ENGINE_LOST) == []


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_requests_end_in_time_when_an_engines_main_process_is_killed(
    release: Release, nodes: Folder, role: str
) -> None:
    kill_and_await(release, role, "engine", errors_within=ENGINE_LOST)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_requests_are_right_when_an_agent_is_killed(release: Release, nodes: Folder, role: str) -> None:
    kill_and_await(release, role, "agent", errors_within=0.0)


def test_requests_are_right_when_a_member_loses_its_volume(release: Release) -> None:
    before = {each["name"]: each["id"] for each in release.status()["etcd"]["members"]}
    with release.load() as load:
        release.follow_guide("Losing a member of etcd")
        release.recycle_volumes()
        release.await_ready()
    after = {each["name"]: each["id"] for each in release.status()["etcd"]["members"]}
    assert {member for member in before if before[member] != after[member]} == {f"{release.full}-etcd-1"}
    assert load.wrong() == []


@pytest.mark.parametrize("lost", [(0, 1), (0, 1, 2)])
def test_requests_end_in_time_and_come_right_when_etcd_is_lost_and_made_anew(
    release: Release, lost: tuple[int, ...]
) -> None:
    generation = release.generation()
    with release.load() as load:
        for number in lost:
            release.kube.kubectl("delete", "pvc", f"data-{release.full}-etcd-{number}", "--wait=false")
        pods = [f"{release.full}-etcd-{number}" for number in lost]
        release.kube.kubectl("delete", "pod", *pods, "--force", "--grace-period=0")
        release.follow_guide("Losing all of etcd", ("etcd.generation=2", f"etcd.generation={generation + 1}"))
        release.recycle_volumes()
        release.await_ready()
    assert load.wrong(ETCD_LOST) == []
    with release.load() as load:
        wait_until(lambda: len(load.answers) > 20, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong() == []


def kill_and_await(release: Release, role: str, container: str, *, errors_within: float) -> None:
    """SIGKILL for a container's main process under load, until it is back."""
    pod = release.fleet(role)[0]
    restarts = release.restarts(name(pod), container)
    with release.load() as load:
        os.kill(main_pid(pod, container), signal.SIGKILL)
        wait_until(
            lambda: release.restarts(name(pod), container) > restarts, "it starts again", STEP_SECONDS, every=0.5
        )
        release.await_ready()
    assert load.wrong(errors_within) == []
