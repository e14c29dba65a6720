"""``etcd-pd end-fleets``: before a release goes, let its engines drain while etcd and its roles are still there.

It never ends with an error: what it cannot do, it says, since a hook that fails would stop the removal.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from .api import KubernetesError, Object, ObjectConflict
from .settings import FleetSettings

log = logging.getLogger(__name__)

#: Pause between looks at the pods that are left, seconds.
PAUSE_SECONDS = 1.0
#: Attempts at a Deployment that others change at the same time.
ATTEMPTS = 5


class Api(Protocol):
    """What is needed of the Kubernetes API."""

    def get(self, kind: str, name: str) -> Object | None:
        """An object, None where there is none."""

    def list(self, kind: str, selector: str) -> list[Object]:
        """The objects with some labels."""

    def replace(self, kind: str, body: Object) -> Object:
        """Replace an object that was read before, or ObjectConflict."""


def end_fleets(settings: FleetSettings, api: Api) -> bool:
    """Scale the Deployments to nothing and wait until their pods are gone; whether all are."""
    deadline = time.monotonic() + settings.wait_seconds
    try:
        for name in settings.deployments:
            _scale_to_nothing(api, name)
        while left := api.list("pods", settings.selector):
            if time.monotonic() >= deadline:
                log.warning("%d pods have not drained within %g s", len(left), settings.wait_seconds)
                return False
            time.sleep(PAUSE_SECONDS)
    except KubernetesError as exc:
        log.warning("fleets do not drain: %s", exc)
        return False
    log.info("%s have drained", ", ".join(settings.deployments))
    return True


def _scale_to_nothing(api: Api, name: str) -> None:
    for _ in range(ATTEMPTS):
        found = api.get("deployments", name)
        if found is None or found["spec"]["replicas"] == 0:
            return
        try:
            api.replace("deployments", {**found, "spec": {**found["spec"], "replicas": 0}})
        except ObjectConflict:
            continue
        log.info("deployment=%s scaled from %d to nothing", name, found["spec"]["replicas"])
        return
    raise ObjectConflict(f"Deployment {name} changed {ATTEMPTS} times meanwhile", 409)
