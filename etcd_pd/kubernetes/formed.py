"""The ConfigMap that says which cluster the members have formed: from then on an empty volume is a lost one.

It belongs to the members' StatefulSet, so that it goes with the release and a new installation may form a new cluster.
"""

from __future__ import annotations

import logging

from .api import Api, KubernetesError, Object, update
from .settings import InitSettings

log = logging.getLogger(__name__)


def say_formed(settings: InitSettings, api: Api, cluster_id: int) -> None:
    """Write it, or give it the cluster's id and its owner again where either differs.

    Raises:
        KubernetesError: the API server refused or did not answer, or the owner is not there.
    """
    name, data = settings.formed_config_map, {"cluster-id": f"{cluster_id:x}"}

    def changed(found: Object | None) -> Object | None:
        owners, there = _owners(settings.formed_owner, api), found or {}
        metadata = there.get("metadata", {})
        if there.get("data") == data and metadata.get("ownerReferences", []) == owners:
            return None
        new = {"apiVersion": "v1", "kind": "ConfigMap", **there}
        return {**new, "metadata": {**metadata, "name": name, "ownerReferences": owners}, "data": data}

    if update(api, "configmaps", name, changed) is not None:
        log.info("formed cluster=%x configmap=%s owner=%s", cluster_id, name, settings.formed_owner or "nobody")


def _owners(name: str, api: Api) -> list[Object]:
    """References to the owner as it is now: after it was deleted and made again, it has another uid."""
    if not name:
        return []
    found = api.get("statefulsets", name)
    if found is None:
        raise KubernetesError(f"StatefulSet {name} is not there, which is to own what this Job writes", 404)
    uid = found["metadata"]["uid"]
    return [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": uid, "blockOwnerDeletion": False}]
