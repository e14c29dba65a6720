"""Fleets of several groups behind two routers, and somebody else who scales them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.waiting import wait_until

from .conftest import MakeRelease
from .kube import name, ready
from .load import Load
from .release import STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

SIZES = {"wide": 3, "narrow": 1}
VALUES: dict[str, Any] = {
    "etcd": {"replicas": 1},
    "prefill": {"replicas": 1, "groups": {name: {"dpSize": size} for name, size in SIZES.items()}},
    "decode": {"replicas": 1, "groups": {"fixed": {}, "scaled": {"autoscaling": {"kind": "external"}}}},
    "router": {"replicas": 2},
}


@pytest.fixture(scope="module")
def cell(make_release: MakeRelease) -> Iterator[Release]:
    """Two groups of each role."""
    with make_release("grouped").installed(VALUES) as release:
        yield release


def test_requests_are_right_when_roles_have_groups_of_unequal_sizes(cell: Release) -> None:
    with cell.load() as load:
        wait_until(lambda: len(load.answers) > 40, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong() == []
    found = {each["id"]: len(each["ranks"]) for each in cell.status()["prefill"]}
    assert sorted(found.values()) == sorted(SIZES.values())


def test_an_upgrade_leaves_the_pods_and_none_is_lost_when_somebody_else_scales(cell: Release) -> None:
    deployment = f"{cell.full}-decode-scaled"
    with cell.load() as load:
        cell.kube.kubectl("scale", f"deployment/{deployment}", "--replicas=2")
        cell.await_ready()
        cell.install({**VALUES, "decode": {**VALUES["decode"], "podAnnotations": {"example.com/try": "1"}}})
        cell.await_ready()
        assert cell.kube.get("deployment", deployment)["spec"]["replicas"] == 2
        cell.kube.kubectl("scale", f"deployment/{deployment}", "--replicas=1")
        wait_until(lambda: len(cell.fleet("decode")) == 2, "one is taken away", STEP_SECONDS, every=0.5)
        cell.await_ready()
    assert load.wrong() == []


def routers(cell: Release) -> list[str]:
    """The routers that are ready."""
    return [name(pod) for pod in cell.kube.pods(cell.selector("router")) if ready(pod)]


def test_requests_are_right_when_one_of_two_routers_is_force_deleted(cell: Release) -> None:
    with cell.load(again=True) as load:
        for victim in routers(cell):  # both in turn: one of them is what that load goes through
            (survivor,) = (other for other in routers(cell) if other != victim)
            with cell.kube.forward(f"pod/{survivor}", 8000) as url, Load(url, cell.expected) as other:
                wait_until(lambda: len(other.answers) > 8, "requests end", STEP_SECONDS, every=0.5)  # noqa: B023
                cell.kube.kubectl("delete", "pod", victim, "--force", "--grace-period=0")
                both = lambda: len(routers(cell)) == 2 and victim not in routers(cell)  # noqa: B023, E731
                wait_until(both, "there are two routers again", STEP_SECONDS, every=0.5)
            assert other.wrong() == []
    assert load.wrong() == []
    assert load.broken, "or neither was in use"
