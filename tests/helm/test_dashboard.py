"""Grafana's dashboard: well formed, of metrics that are documented, and in the chart when it is asked for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.helm.chart import DASHBOARD, ROOT, Objects, dashboard_queries, rendered, template

pytestmark = pytest.mark.helm

PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ROWS = [
    "Registrations",
    "Resolves",
    "Watch",
    "Sessions and leases",
    "Queue",
    "etcd",
    "Engine",
    "KV transfer and output",
]


def test_it_has_its_rows_and_panels_that_say_what_they_show() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == ROWS
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_ids_are_unique() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids)) > 20
    for panel in PANELS:
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(references) == len(set(references)), panel["title"]


def test_panels_do_not_cover_each_other() -> None:
    seen: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in across for y in down}
        assert not cells & seen, panel["title"]
        seen |= cells


def test_variables_that_are_used_exist() -> None:
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= known


def test_every_selector_names_the_namespace_and_every_metric_of_ours_is_documented() -> None:
    documented = set(re.findall(r"etcd_pd_\w+", (ROOT / "docs" / "metrics.md").read_text()))
    for query in dashboard_queries():
        if query.startswith("label_values(etcd_pd_build_info, "):
            continue  # it finds the namespaces
        selectors = re.findall(r"\b(\w+)\{([^}]*)\}", query)
        assert selectors, query
        for name, selector in selectors:
            assert 'namespace="$namespace"' in selector, query
            plain = re.sub(r"_(bucket|count|sum)$", "", name)
            assert not plain.startswith("etcd_pd_") or plain in documented, query
        assert query.count("{") == query.count("}") == len(selectors) and query.count("(") == query.count(")")


def test_it_is_in_the_chart_when_it_is_asked_for_as_it_is() -> None:
    assert "dashboard" not in rendered("gpu").text
    values = {"enabled": True, "label": "dashboards", "labelValue": "yes", "annotations": {"folder": "Serving"}}
    found = Objects(template("cpu", {"grafanaDashboard": values})).one("ConfigMap", "dashboard")
    assert found["metadata"]["labels"]["dashboards"] == "yes"
    assert found["metadata"]["annotations"] == {"folder": "Serving"}
    assert found["data"].keys() == {"etcd-pd.json"}
    assert json.loads(found["data"]["etcd-pd.json"]) == DASHBOARD


def test_the_label_is_the_one_that_the_sidecar_looks_for() -> None:
    found = rendered("cpu").one("ConfigMap", "dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
