"""`etcd-pd end-fleets`: the engines of a release drain before it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from etcd_pd.errors import ConfigError
from etcd_pd.kubernetes import fleets
from etcd_pd.kubernetes.api import KubernetesError, Object, ObjectConflict
from etcd_pd.kubernetes.settings import FleetSettings

pytestmark = pytest.mark.helm

SETTINGS = FleetSettings(deployments=("cell-prefill", "cell-decode"), selector="app=agent", wait_seconds=5)


class Fleets:
    """Two Deployments with two pods each, of which each look finds one less."""

    def __init__(self, at_replace: Callable[[Object], None] = lambda body: None) -> None:
        self.replicas = dict.fromkeys(SETTINGS.deployments, 2)
        self.pods, self.drains, self.kinds = 4, True, set[str]()
        self._at_replace = at_replace

    def get(self, kind: str, name: str) -> Object | None:
        if name not in self.replicas:
            return None
        return {"metadata": {"name": name}, "spec": {"replicas": self.replicas[name], "paused": False}}

    def list(self, kind: str, selector: str) -> list[Object]:
        assert (kind, selector) == ("pods", SETTINGS.selector)
        left = [{"metadata": {"name": str(number)}} for number in range(self.pods)]
        self.pods -= self.drains
        return left

    def create(self, kind: str, body: Object) -> Object:
        raise AssertionError("nothing is made")

    def replace(self, kind: str, body: Object) -> Object:
        assert body["spec"]["paused"] is False
        self.kinds.add(kind)
        self._at_replace(body)
        self.replicas[body["metadata"]["name"]] = body["spec"]["replicas"]
        return body


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "PAUSE_SECONDS", 0.0)


def test_both_fleets_are_scaled_to_nothing_and_waited_for_when_a_release_goes() -> None:
    api = Fleets()
    assert fleets.end_fleets(SETTINGS, api)
    assert set(api.replicas.values()) == {0} and api.pods < 0
    assert api.kinds == {"deployments"}


def test_leader_worker_sets_are_scaled_by_their_own_api_when_a_release_has_some() -> None:
    api = Fleets()
    settings = FleetSettings(leader_worker_sets=SETTINGS.deployments, selector="app=agent", wait_seconds=5)
    assert fleets.end_fleets(settings, api)
    assert set(api.replicas.values()) == {0} and api.kinds == {"leaderworkersets"}


def test_a_fleet_that_is_not_there_is_no_error_when_a_release_goes() -> None:
    api = Fleets()
    del api.replicas["cell-prefill"]
    assert fleets.end_fleets(SETTINGS, api)


def test_scaling_is_tried_again_when_somebody_else_changed_the_deployment() -> None:
    refused: list[str] = []

    def refuse_once(body: Object) -> None:
        if body["metadata"]["name"] not in refused:
            refused.append(body["metadata"]["name"])
            raise ObjectConflict("changed", 409)

    api = Fleets(refuse_once)
    assert fleets.end_fleets(SETTINGS, api)
    assert set(api.replicas.values()) == {0}


def test_the_removal_goes_on_when_kubernetes_refuses(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(body: Object) -> None:
        raise KubernetesError("PUT deployments/cell-prefill: 403", 403)

    assert not fleets.end_fleets(SETTINGS, Fleets(refuse))
    assert "403" in caplog.text


def test_the_removal_goes_on_when_pods_do_not_drain_in_time(caplog: pytest.LogCaptureFixture) -> None:
    api = Fleets()
    api.drains = False
    short = FleetSettings(deployments=("cell-decode",), selector="app=agent", wait_seconds=0.05)
    assert not fleets.end_fleets(short, api)
    assert "have not drained within 0.05 s" in caplog.text


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"deployments": (), "selector": "a=b"}, "deployments"),
        ({"deployments": ("a",), "selector": ""}, "selector"),
        ({"deployments": ("a",), "selector": "a=b", "wait_seconds": 0}, "wait_seconds"),
    ],
)
def test_settings_that_would_end_the_wrong_pods_are_refused_when_they_are_made(
    values: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError, match=field):
        FleetSettings(**values)
