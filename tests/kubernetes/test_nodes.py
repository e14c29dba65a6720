"""Nodes are cut off, drained and lost under load, and the API server is away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.support.waiting import wait_until

from .kube import name, ready
from .load import ENGINE_LOST, Load
from .provider import Folder
from .release import READY_SECONDS, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

#: As long as a node is cut off, seconds: twelve sessions.
CUT_SECONDS = 60.0


def test_requests_end_in_time_when_a_node_is_cut_off_and_comes_back(release: Release, nodes: Folder) -> None:
    node = a_node_without_the_router(release)
    with release.load() as load:
        with cut(nodes, node):
            wait_until(lambda: load.lasted > CUT_SECONDS, "a minute passes", 2 * STEP_SECONDS, every=0.5)
        wait_until(lambda: node in ready_nodes(release), f"{node} is ready", STEP_SECONDS, every=0.5)
        release.await_ready()
    assert load.wrong(ENGINE_LOST) == []


def test_requests_are_right_when_a_node_is_drained(release: Release) -> None:
    node = a_node_without_the_router(release)
    with release.load() as load:
        release.follow_guide("Replacing a node", ("NODE", node))
        release.kube.kubectl("uncordon", node)
        release.await_ready()
    assert load.wrong() == []


def test_requests_end_in_time_when_a_node_is_gone_with_its_volume(release: Release, nodes: Folder) -> None:
    node = a_node_without_the_router(release)
    member = next(name(pod) for pod in release.members() if pod["spec"]["nodeName"] == node)
    pods = [name(pod) for pod in release.kube.pods(release.selector()) if pod["spec"].get("nodeName") == node]
    with release.load() as load:
        with cut(nodes, node):
            release.kube.kubectl("delete", "pvc", f"data-{member}", "--wait=false")
            release.kube.kubectl("delete", "pod", *pods, "--force", "--grace-period=0")
            wait_until(lambda: len(release.fleet("prefill")) == 2, "pods take their place", STEP_SECONDS, every=0.5)
        release.recycle_volumes()  # the node that takes its place has an empty one
        release.await_ready(2 * READY_SECONDS)
    assert load.wrong(ENGINE_LOST) == []


def test_requests_are_right_when_the_api_server_is_away(release: Release, nodes: Folder) -> None:
    router = release.kube.pods(release.selector("router"))[0]["status"]["podIP"]
    # not by `kubectl port-forward`, which goes through the API server
    with Load(f"http://{router}:8000", release.expected) as load:
        with stopped("kube-apiserver"):
            wait_until(lambda: load.lasted > 20, "requests end", STEP_SECONDS, every=0.5)
        wait_until(lambda: load.lasted > 30, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong() == []


@contextmanager
def cut(nodes: Folder, node: str) -> Iterator[None]:
    """A node off the network."""
    nodes.cut(node)
    try:
        yield
    finally:
        nodes.mend(node)


@contextmanager
def stopped(program: str) -> Iterator[None]:
    """A program of the control plane that answers nothing."""
    process = next(each for each in psutil.process_iter(["cmdline"]) if program in " ".join(each.info["cmdline"][:1]))
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def a_node_without_the_router(release: Release) -> str:
    """A node with a member of etcd whose loss leaves the way in."""
    routers = {pod["spec"]["nodeName"] for pod in release.kube.pods(release.selector("router"))}
    found = [pod["spec"]["nodeName"] for pod in release.members() if pod["spec"]["nodeName"] not in routers]
    return str(found[0])


def ready_nodes(release: Release) -> set[str]:
    """The nodes that Kubernetes calls ready."""
    return {name(node) for node in release.kube.get("nodes")["items"] if ready(node)}
