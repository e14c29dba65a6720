"""Clusters with rules of their own: a parent chart, accounts and volumes that are given, long names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, IMAGES, RELEASE, Objects, binaries, run, template

pytestmark = pytest.mark.helm

FULL = f"{RELEASE}-etcd-pd"
#: Whose pods ask the Kubernetes API.
ASKING = ("certs", "init", "router", "uninstall")


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_a_parent_chart_switches_it_and_sets_globals_when_it_is_a_subchart(helm: str, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "etcd-pd")
    dependency = {"name": "etcd-pd", "version": "0.1.0", "condition": "etcd-pd.enabled"}
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(about))
    values: dict[str, Any] = {"global": {**IMAGES, "anything": {"at": "all"}}, "etcd-pd": {"enabled": True}}

    def rendered() -> list[Any]:
        done = run(binaries() / helm, "template", RELEASE, parent, "--values", "-", stdin=yaml.safe_dump(values))
        assert done.returncode == 0, done.stderr
        return Objects(done.stdout).all

    assert len(rendered()) > 20
    values["etcd-pd"]["enabled"] = False
    assert rendered() == []


@pytest.mark.parametrize("create", [True, False])
def test_pods_and_bindings_name_the_accounts_when_values_do(create: bool) -> None:
    objects = Objects(template(values={"serviceAccount": {"create": create, "name": "mine"}}))
    made = [each["metadata"]["name"] for each in objects.of("ServiceAccount")]
    first = "certs-first" if create else "certs"
    assert sorted(made) == (["mine", *sorted(f"mine-{name}" for name in {*ASKING, first})] if create else [])
    used = {where: pod["spec"]["serviceAccountName"] for where, pod in objects.pods()}
    assert used[f"Deployment/{FULL}-router"] == "mine-router"
    assert used[f"StatefulSet/{FULL}-etcd"] == used[f"Deployment/{FULL}-prefill"] == used[f"Pod/{FULL}-test"] == "mine"
    bound = {each["metadata"]["name"]: each["subjects"][0]["name"] for each in objects.of("RoleBinding")}
    assert bound == {f"{FULL}-{name}": f"mine-{name}" for name in ASKING} | {f"{FULL}-certs-first": f"mine-{first}"}


def test_names_differ_when_long_release_names_differ_in_their_end_alone() -> None:
    start = "a-release-of-somebody-who-likes-long-names"
    names = [_names(f"{start}-{end}") for end in ("one", "two")]
    assert not names[0] & names[1]
    assert max(map(len, names[0] | names[1])) <= 63
    # a CronJob adds eleven characters to its name
    assert max(len(name) for name in names[0] if name.endswith("-certs")) <= 52


def _names(release: str) -> set[str]:
    return {each["metadata"]["name"] for each in Objects(template(release=release)).all}


def test_names_stay_as_they_were_when_they_are_short_enough() -> None:
    assert f"{'r' * 32}-etcd-pd-router" in _names("r" * 32)
    assert f"{FULL}-router" in _names(RELEASE)
    assert "my-etcd-pd-router" in _names("my-etcd-pd")


@pytest.mark.parametrize(("value", "rendered"), [("", None), ("fast", "fast"), ("-", "")])
def test_volumes_have_the_class_that_is_asked_for_and_none_for_a_dash(value: str, rendered: str | None) -> None:
    etcd = Objects(template(values={"etcd": {"storage": {"storageClass": value}}})).one("StatefulSet", "etcd")
    assert etcd["spec"]["volumeClaimTemplates"][0]["spec"].get("storageClassName") == rendered


def test_a_disruption_budget_may_be_a_percentage() -> None:
    objects = Objects(template(values={"decode": {"maxUnavailable": "25%"}}))
    assert objects.one("PodDisruptionBudget", "decode")["spec"]["maxUnavailable"] == "25%"
    assert objects.one("PodDisruptionBudget", "prefill")["spec"]["maxUnavailable"] == 1


def test_jobs_are_new_ones_with_every_upgrade_and_go_some_time_after_they_ended() -> None:
    for job in Objects(template(values={"jobs": {"ttlSecondsAfterFinished": 600}})).jobs():
        assert job["spec"]["ttlSecondsAfterFinished"] == 600
        assert job["metadata"]["name"].endswith("-1"), "the release's revision"
