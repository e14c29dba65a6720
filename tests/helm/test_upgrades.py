"""A release that an older chart made goes on with its own values; what they lack has its default."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, ROOT, Objects, container, notes, template, try_template

pytestmark = pytest.mark.helm

#: What `helm upgrade --reuse-values` puts in the place of values.yaml: the values of the chart that made the release.
OLD = ROOT / "tests" / "helm" / "values-0.1.0.yaml"
DEFAULTS: dict[str, Any] = json.loads((CHART / "files" / "defaults.json").read_text())


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """A copy of the chart, whose values a test may change."""
    return Path(shutil.copytree(CHART, tmp_path / "etcd-pd"))


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_the_chart_renders_when_all_values_are_those_of_an_older_chart(helm: str, chart: Path) -> None:
    shutil.copy(OLD, chart / "values.yaml")
    objects = Objects(template(chart=chart, helm=helm))
    assert len(objects.of("Deployment")) == 3
    etcd = container(objects.one("StatefulSet", "etcd")["spec"]["template"], "etcd")
    assert etcd["image"] == "quay.io/coreos/etcd:v3.5.30", "old defaults are the release's own now"


def test_each_value_has_its_default_when_an_older_chart_did_not_have_it(chart: Path) -> None:
    old = yaml.safe_load(OLD.read_text())
    new = [path for path in DEFAULTS if not _has(old, path.split("."))]
    assert {"global.imageRegistry", "prefill.updateStrategy.type", "decode.updateStrategy.type"} <= set(new)
    expected = template()
    for path in new:
        (chart / "values.yaml").write_text(yaml.safe_dump(_without(path.split("."))))
        assert template(chart=chart) == expected, path


def _has(values: Any, words: list[str]) -> bool:
    return not words or (isinstance(values, dict) and words[0] in values and _has(values[words[0]], words[1:]))


def _without(words: list[str]) -> Any:
    values = at = json.loads(json.dumps(yaml.safe_load((CHART / "values.yaml").read_text())))
    for word in words[:-1]:
        at = at[word]
    del at[words[-1]]
    return values


def test_no_value_is_lost_when_it_is_false_zero_or_empty() -> None:
    values = {
        "router": {"enabled": False},
        "prefill": {"replicas": 0},
        "etcd": {"resources": {"requests": None}},
        "agent": {"prefillOnly": False},
    }
    objects = Objects(template(values=values))
    assert len(objects.of("Deployment")) == 2
    assert objects.one("Deployment", "prefill")["spec"]["replicas"] == 0
    assert "PREFILL_ONLY" not in objects.text
    etcd = objects.one("StatefulSet", "etcd")["spec"]["template"]
    assert "resources" not in container(etcd, "etcd"), "null takes a part away"


def test_every_template_fills_in_what_is_missing_before_anything_else() -> None:
    for path in (CHART / "templates").rglob("*"):
        if path.suffix in (".yaml", ".txt"):
            assert path.read_text().startswith('{{- include "etcd-pd.defaults" . }}\n'), path


@pytest.mark.parametrize(
    ("strategy", "rendered", "said"),
    [
        ({}, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}, "maxUnavailable 1"),
        (
            {"maxSurge": 1, "maxUnavailable": "25%"},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"}},
            "maxSurge 1, maxUnavailable 25%",
        ),
        ({"type": "Recreate"}, {"type": "Recreate"}, "all pods at once"),
    ],
)
def test_a_fleet_is_replaced_as_its_values_say_when_its_pods_change(
    strategy: dict[str, Any], rendered: dict[str, Any], said: str
) -> None:
    values = {"decode": {"updateStrategy": strategy}}
    objects = Objects(template(values=values))
    assert objects.one("Deployment", "decode")["spec"]["strategy"] == rendered
    assert said in next(line for line in notes(values).splitlines() if line.startswith("  decode: "))
    assert "a new agent image or agent setting\nrestarts every engine" in notes(values)


def test_a_strategy_is_refused_when_no_pod_could_be_replaced() -> None:
    done = try_template(values={"decode": {"updateStrategy": {"maxUnavailable": "0%"}}})
    assert "decode.updateStrategy: maxSurge and maxUnavailable cannot both be 0" in done.stderr
