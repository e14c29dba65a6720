"""The ConfigMap that says that a cluster was formed: it goes with the members' StatefulSet, and a new one adopts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_pd.kubernetes.api import ATTEMPTS, Kubernetes, KubernetesError, Object, ObjectConflict
from etcd_pd.kubernetes.formed import say_formed
from etcd_pd.kubernetes.settings import InitSettings
from tests.helm.api import ApiServer
from tests.helm.chart import NAMESPACE, container, environment, rendered
from tests.helm.secrets import MemoryApi

pytestmark = pytest.mark.helm

SETTINGS = InitSettings(formed_config_map="formed-1", formed_owner="etcd")


def _stateful_set(uid: str) -> Object:
    return {"metadata": {"name": "etcd", "uid": uid}}


@pytest.fixture
def api() -> MemoryApi:
    found = MemoryApi()
    found.create("statefulsets", _stateful_set("one"))
    say_formed(SETTINGS, found, 0xABC)
    return found


def test_the_cluster_is_remembered_for_as_long_as_its_stateful_set_when_it_was_formed(api: MemoryApi) -> None:
    formed = api.objects["configmaps", "formed-1"]
    assert formed["data"] == {"cluster-id": "abc"}
    (owner,) = formed["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": "etcd",
        "uid": "one",
        "blockOwnerDeletion": False,
    }


def test_nothing_is_written_when_nothing_differs(api: MemoryApi) -> None:
    version = api.version
    say_formed(SETTINGS, api, 0xABC)
    assert api.version == version


@pytest.mark.parametrize("owners", [[], [{"kind": "StatefulSet", "name": "etcd", "uid": "one"}]])
def test_it_is_adopted_when_the_stateful_set_was_made_again(api: MemoryApi, owners: list[Object]) -> None:
    formed = api.objects["configmaps", "formed-1"]["metadata"]
    formed["labels"], formed["ownerReferences"] = {"kept": "yes"}, owners
    api.objects["statefulsets", "etcd"] = _stateful_set("two")
    say_formed(SETTINGS, api, 0xABC)
    formed = api.objects["configmaps", "formed-1"]["metadata"]
    assert [owner["uid"] for owner in formed["ownerReferences"]] == ["two"]
    assert formed["labels"] == {"kept": "yes"}


def test_it_says_so_when_its_owner_is_not_there(api: MemoryApi) -> None:
    del api.objects["statefulsets", "etcd"]
    with pytest.raises(KubernetesError, match="StatefulSet etcd is not there"):
        say_formed(SETTINGS, api, 0xABC)


class _Raced(MemoryApi):
    """Somebody else is always a moment faster, some times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.create("statefulsets", _stateful_set("one"))

    def create(self, kind: str, body: Object) -> Object:
        if kind == "configmaps" and self.times:
            self.times -= 1
            raise ObjectConflict("exists", 409)
        return super().create(kind, body)


def test_it_is_written_all_the_same_when_somebody_else_was_faster() -> None:
    api = _Raced(ATTEMPTS - 1)
    say_formed(SETTINGS, api, 0xABC)
    assert api.objects["configmaps", "formed-1"]["data"] == {"cluster-id": "abc"}
    with pytest.raises(ObjectConflict, match="ConfigMap formed-1"):
        say_formed(SETTINGS, _Raced(ATTEMPTS), 0xABC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    found = ApiServer("127.0.0.77", tmp_path)
    found.start()
    yield found
    found.stop()


def test_the_rendered_role_is_enough_when_the_job_writes_and_adopts(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered("cpu")
    server.apply(objects.all)
    job = next(pod for where, pod in objects.pods() if "-init-" in where)
    env = environment(container(job, "init"))
    settings = InitSettings(
        formed_config_map=env["ETCD_PD_FORMED_CONFIG_MAP"], formed_owner=env["ETCD_PD_FORMED_OWNER"]
    )
    (tmp_path / "token").write_text(server.token(job["spec"]["serviceAccountName"]))
    (tmp_path / "ca.crt").write_bytes(server.ca)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.host)
    api = Kubernetes(NAMESPACE, tmp_path)
    say_formed(settings, api, 0xABC)
    formed = server.store.objects["configmaps", settings.formed_config_map]
    own = server.store.objects["statefulsets", settings.formed_owner]["metadata"]["uid"]
    assert [owner["uid"] for owner in formed["metadata"]["ownerReferences"]] == [own]
    server.store.objects["statefulsets", settings.formed_owner]["metadata"]["uid"] = "two"
    say_formed(settings, api, 0xABC)
    formed = server.store.objects["configmaps", settings.formed_config_map]
    assert [owner["uid"] for owner in formed["metadata"]["ownerReferences"]] == ["two"]
    assert not server.refused
