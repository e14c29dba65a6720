"""The calls of the Kubernetes API that the chart's Jobs need: read, create and replace one object, and list some.

Standard library only: a client package would bring a dozen others into the image for these four requests.
"""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from ..errors import ConfigError, EtcdPDError

log = logging.getLogger(__name__)

#: Where a pod finds its service account's token, the API server's certificate authority and its own namespace.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS = 15.0
#: Attempts at an object that others change at the same time.
ATTEMPTS = 5
#: Where the API has the kinds that are not among the core's.
GROUPS = {
    "statefulsets": "apis/apps/v1",
    "deployments": "apis/apps/v1",
    "leaderworkersets": "apis/leaderworkerset.x-k8s.io/v1",
}

Object = dict[str, Any]


class KubernetesError(EtcdPDError):
    """The API server refused, or did not answer.

    Attributes:
        status: HTTP status, 0 where nothing answered.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ObjectConflict(KubernetesError):
    """Somebody else created or changed the object meanwhile: read it again."""


class Api(Protocol):
    """What the Jobs need of the Kubernetes API."""

    def get(self, kind: str, name: str) -> Object | None:
        """An object, None where there is none."""

    def create(self, kind: str, body: Object) -> Object:
        """Create an object, or ObjectConflict."""

    def replace(self, kind: str, body: Object) -> Object:
        """Replace an object that was read before, or ObjectConflict."""


def update(api: Api, kind: str, name: str, change: Callable[[Object | None], Object | None]) -> Object | None:
    """Read an object, and write what ``change`` makes of it, until nobody interferes.

    Args:
        api: where.
        kind: for example ``secrets``.
        name: the object's.
        change: called at each attempt with the object, or None where there is none; None where all is well.

    Returns:
        what was written; None where nothing was to be.

    Raises:
        ObjectConflict: others changed it at every attempt.
    """
    what = kind
    for _ in range(ATTEMPTS):
        found = api.get(kind, name)
        body = change(found)
        if body is None:
            return None
        what = body.get("kind", kind)
        try:
            return (api.replace if found else api.create)(kind, body)
        except ObjectConflict:
            log.info("%s=%s changed meanwhile", kind.removesuffix("s"), name)
    raise ObjectConflict(f"{what} {name} changed {ATTEMPTS} times meanwhile", 409)


class Kubernetes:
    """The API server as seen from a pod, in one namespace.

    Args:
        namespace: whose objects; empty: the pod's own.
        account: directory with the service account's files.

    Raises:
        ConfigError: this is no pod, or it has no token.
    """

    def __init__(self, namespace: str = "", account: Path = ACCOUNT) -> None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ConfigError("namespace", "needs a pod: KUBERNETES_SERVICE_HOST is not set")
        try:
            self._token = account / "token"
            self.namespace = namespace or (account / "namespace").read_text().strip()
            context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as exc:
            raise ConfigError("namespace", f"needs a service account's token: {exc}") from exc
        self._url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def get(self, kind: str, name: str) -> Object | None:
        """An object, for example ``get("secrets", "ca")``; None where there is none."""
        try:
            return self._ask("GET", f"{kind}/{name}")
        except KubernetesError as exc:
            if exc.status == 404:
                return None
            raise

    def list(self, kind: str, selector: str) -> list[Object]:
        """The objects with some labels, as ``KEY=VALUE,...``."""
        found: list[Object] = self._ask("GET", f"{kind}?{urlencode({'labelSelector': selector})}")["items"]
        return found

    def create(self, kind: str, body: Object) -> Object:
        """Create an object.

        Raises:
            ObjectConflict: it exists.
        """
        return self._ask("POST", kind, body)

    def replace(self, kind: str, body: Object) -> Object:
        """Replace an object that was read before.

        Raises:
            ObjectConflict: it has changed since.
        """
        return self._ask("PUT", f"{kind}/{body['metadata']['name']}", body)

    def _ask(self, method: str, path: str, body: Object | None = None) -> Object:
        request = urllib.request.Request(
            f"{self._url}/{GROUPS.get(re.split('[/?]', path)[0], 'api/v1')}/namespaces/{self.namespace}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            # read each time: kubelet renews it
            headers={"Authorization": f"Bearer {self._token.read_text()}", "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                found: Object = json.load(answer)
                return found
        except urllib.error.HTTPError as exc:
            with exc:
                text = exc.read(2000).decode(errors="replace")
            kind = ObjectConflict if exc.code == 409 else KubernetesError
            raise kind(f"{method} {path}: {exc.code} {text}", exc.code) from exc
        except OSError as exc:
            raise KubernetesError(f"{method} {path}: {exc}") from exc
