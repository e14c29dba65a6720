"""NetworkPolicies in force: what the table in docs/security.md allows works, and nothing else gets through."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.waiting import wait_until

from .conftest import MakeRelease
from .kube import Kube, Object, name, ready
from .release import ONE, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

TRY = """
import json, socket, sys
def opens(host, port):
    try:
        socket.create_connection((host, port), 3).close()
    except OSError:
        return False
    return True
print(json.dumps([opens(host, port) for host, port in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def cell(make_release: MakeRelease) -> Iterator[Release]:
    """A release whose pods may reach no more than they need to."""
    with make_release("policies").installed({**ONE, "networkPolicy": {"egress": True}}) as release:
        yield release


def test_everything_works_when_egress_is_limited_too(cell: Release) -> None:
    cell.kube.helm("test", cell.name, seconds=300)
    with cell.load() as load:
        wait_until(lambda: load.lasted > 10, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong() == []


@pytest.mark.parametrize("namespace", ["policies", "strangers"])
def test_a_stranger_reaches_the_router_and_metrics_alone_when_policies_hold(
    cell: Release, make_release: MakeRelease, namespace: str
) -> None:
    address = {role: _address(cell, role) for role in ("prefill", "decode")}
    etcd, router = _ip(cell.members()[0]), _ip(cell.kube.pods(cell.selector("router"))[0])
    closed = [(etcd, 2379), (etcd, 2380), *((ip, port) for ip in address.values() for port in (30000, 8998))]
    opened = [(router, 8000), (router, 29000), (etcd, 2381), *((ip, 9479) for ip in address.values())]
    kube = make_release(namespace).kube
    with_stranger = _stranger(kube)
    found = json.loads(kube.execute(with_stranger, "stranger", "python3", "-c", TRY, json.dumps(closed + opened)))
    assert dict(zip(closed + opened, found, strict=True)) == {
        **dict.fromkeys(closed, False),
        **dict.fromkeys(opened, True),
    }


def test_an_agent_reaches_etcd_and_no_stranger_when_policies_hold(cell: Release, make_release: MakeRelease) -> None:
    kube = make_release("strangers").kube
    stranger = _ip(kube.get("pod", _stranger(kube)))
    targets = [(_ip(cell.members()[0]), 2379), (_ip(cell.members()[0]), 2380), (stranger, 9)]
    pod = name(cell.fleet("decode")[0])
    found = cell.kube.execute(pod, "agent", "python3", "-c", TRY, json.dumps(targets))
    assert json.loads(found) == [True, False, False]


def _stranger(kube: Kube) -> str:
    """A pod that is no part of the release."""
    limits = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}
    container = {
        "name": "stranger",
        "image": "etcd-pd/agent:0.1.0",
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", "import time; time.sleep(3600)"],
        "resources": limits,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": security, "terminationGracePeriodSeconds": 0}
    kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"}, "spec": spec})
    wait_until(lambda: ready(kube.get("pod", "stranger")), "the stranger runs", STEP_SECONDS, every=0.5)
    return "stranger"


def _address(release: Release, role: str) -> str:
    return _ip(release.fleet(role)[0])


def _ip(pod: Object) -> str:
    return str(pod["status"]["podIP"])
