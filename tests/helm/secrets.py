"""The part of the Kubernetes API that the chart's Jobs use, in memory."""

from __future__ import annotations

import base64
import copy
from pathlib import Path

from etcd_pd.config import EtcdSettings
from etcd_pd.kubernetes.api import Object, ObjectConflict


class MemoryApi:
    """Objects by kind and name, with the API server's rules on versions."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        #: The last version that any object got.
        self.version = 0

    def get(self, kind: str, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    def create(self, kind: str, body: Object) -> Object:
        name = body["metadata"]["name"]
        if (kind, name) in self.objects:
            raise ObjectConflict(f"{name} exists", 409)
        return self._store(kind, body)

    def replace(self, kind: str, body: Object) -> Object:
        there = self.objects[(kind, body["metadata"]["name"])]
        if body["metadata"].get("resourceVersion") not in (None, there["metadata"]["resourceVersion"]):
            raise ObjectConflict("it has changed", 409)
        return self._store(kind, body)

    def _store(self, kind: str, body: Object) -> Object:
        self.version += 1
        stored = copy.deepcopy(body)
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.objects[(kind, body["metadata"]["name"])] = stored
        return copy.deepcopy(stored)

    def data(self, name: str) -> dict[str, bytes]:
        """A Secret's decoded data."""
        return {key: base64.b64decode(value) for key, value in self.objects[("secrets", name)]["data"].items()}

    def mount(self, name: str, directory: Path) -> Path:
        """Write a Secret's files, as kubelet would."""
        directory.mkdir(parents=True, exist_ok=True)
        for key, value in self.data(name).items():
            (directory / key).write_bytes(value)
        return directory


def tls_settings(directory: Path, endpoints: tuple[str, ...]) -> EtcdSettings:
    """How to reach etcd with the certificate in a directory."""
    return EtcdSettings(
        endpoints=endpoints,
        ca_file=str(directory / "ca.crt"),
        cert_file=str(directory / "tls.crt"),
        key_file=str(directory / "tls.key"),
    )
