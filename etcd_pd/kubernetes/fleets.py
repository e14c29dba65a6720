"""``etcd-pd end-fleets``: before a release goes, let its engines drain while etcd and its roles are still there.

It never ends with an error: what it cannot do, it says, since a hook that fails would stop the removal.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from .api import Api, KubernetesError, Object, update
from .settings import FleetSettings

log = logging.getLogger(__name__)

#: Pause between looks at the pods that are left, seconds.
PAUSE_SECONDS = 1.0


class ListingApi(Api, Protocol):
    """The Kubernetes API, with lists."""

    def list(self, kind: str, selector: str) -> list[Object]:
        """The objects with some labels."""


def end_fleets(settings: FleetSettings, api: ListingApi) -> bool:
    """Scale the fleets to nothing and wait until their pods are gone; whether all are."""
    deadline = time.monotonic() + settings.wait_seconds
    fleets = {"deployments": settings.deployments, "leaderworkersets": settings.leader_worker_sets}
    try:
        for kind, names in fleets.items():
            for name in names:
                _scale_to_nothing(api, kind, name)
        while left := api.list("pods", settings.selector):
            if time.monotonic() >= deadline:
                log.warning("%d pods have not drained within %g s", len(left), settings.wait_seconds)
                return False
            time.sleep(PAUSE_SECONDS)
    except KubernetesError as exc:
        log.warning("fleets do not drain: %s", exc)
        return False
    log.info("%s have drained", ", ".join((*settings.deployments, *settings.leader_worker_sets)))
    return True


def _scale_to_nothing(api: Api, kind: str, name: str) -> None:
    def scaled(found: Object | None) -> Object | None:
        if found is None or found["spec"]["replicas"] == 0:
            return None
        log.info("%s=%s is scaled from %d to nothing", kind.removesuffix("s"), name, found["spec"]["replicas"])
        return {**found, "spec": {**found["spec"], "replicas": 0}}

    update(api, kind, name, scaled)
