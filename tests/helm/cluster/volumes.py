"""A pod's volumes, as directories of this machine with the owner and the mode that kubelet gives them."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docker.types import Mount

from etcd_pd.kubernetes.api import Object

#: Where a pod finds what its service account may use.
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Volumes:
    """The volumes of one pod.

    Args:
        api: has its Secrets and ConfigMaps.
        spec: the pod's.
        directory: for what ends with the pod.
        claims: directories of its persistent volumes, by volume.
    """

    def __init__(self, api: Any, spec: Object, directory: Path, claims: dict[str, Path]) -> None:
        self._api, self._spec, self._directory, self._claims = api, spec, directory, claims
        self._paths: dict[str, Path] = {}

    def make(self, namespace: str) -> bool:
        """Make them; False while a Secret or ConfigMap is missing, for which a pod waits."""
        volumes = self._spec.get("volumes", ())
        sources = {volume["name"]: self._source(volume) for volume in volumes}
        if None in sources.values():
            return False
        self._directory.mkdir(parents=True, exist_ok=True)
        for volume in volumes:
            self._paths[volume["name"]] = self._make(volume, sources[volume["name"]] or {})
        for name, path in self._claims.items():
            path.mkdir(parents=True, exist_ok=True)
            self._paths[name] = self._own(path, 0o2775)
        if self._spec["automountServiceAccountToken"]:
            account = {
                "token": self._api.token(self._spec["serviceAccountName"]).encode(),
                "ca.crt": self._api.ca,
                "namespace": namespace.encode(),
            }
            self._paths[ACCOUNT] = self._files("service-account", account, 0o640)
        return True

    def mounts(self, container: Object) -> list[Mount]:
        """Those that a container has."""
        found = [
            Mount(each["mountPath"], str(self._paths[each["name"]]), "bind", read_only=each.get("readOnly", False))
            for each in container.get("volumeMounts", ())
        ]
        if ACCOUNT in self._paths:
            found.append(Mount(ACCOUNT, str(self._paths[ACCOUNT]), "bind", read_only=True))
        return found

    def remove(self) -> None:
        """Away with all but the persistent ones."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _source(self, volume: Object) -> dict[str, bytes] | None:
        """The files of a volume from the API; None where it is missing and must be there."""
        for kind, key, named in (("secrets", "secret", "secretName"), ("configmaps", "configMap", "name")):
            if key in volume:
                found = self._api.store.get(kind, volume[key][named])
                if found is None:
                    return {} if volume[key].get("optional") else None
                decode: Callable[[str], bytes] = base64.b64decode if key == "secret" else str.encode
                return {name: decode(value) for name, value in found["data"].items()}
        return {}

    def _make(self, volume: Object, files: dict[str, bytes]) -> Path:
        if "emptyDir" in volume:
            path = self._directory / volume["name"]
            path.mkdir()
            return self._own(path, 0o2777)
        if "secret" in volume or "configMap" in volume:
            return self._files(volume["name"], files, volume.get("secret", {}).get("defaultMode", 0o644))
        raise AssertionError(f"no such volume here: {volume}")

    def _files(self, name: str, files: dict[str, bytes], mode: int) -> Path:
        path = self._directory / name
        path.mkdir()
        for file, content in files.items():
            (path / file).write_bytes(content)
            self._own(path / file, mode)
        return self._own(path, 0o2755)

    def _own(self, path: Path, mode: int) -> Path:
        """Root's, and the pod's group's, as fsGroup makes it."""
        shutil.chown(path, 0, self._spec["securityContext"]["fsGroup"])
        path.chmod(mode)
        return path
