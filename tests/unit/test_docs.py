"""The docs name what there is: every alert has its entry, every metric and command its line, and none is made up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from etcd_pd.agent.families import families as agent_families
from etcd_pd.cli.app import cli
from etcd_pd.reference.balance import Load
from etcd_pd.reference.engine.metrics import Served, families as engine_families
from etcd_pd.sglang.gateway.health import EngineState, EngineWatch
from etcd_pd.sglang.gateway.metrics import GatewayMetrics
from etcd_pd.sglang.gateway.ranks import Ranks
from etcd_pd.telemetry.metrics import Metric
from tests.support.agent_in_memory import InMemory

ROOT = Path(__file__).parents[2]
METRICS, RUNBOOK, CLI = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("metrics", "runbook", "cli"))
CHART = "\n".join(
    path.read_text() for path in sorted((ROOT / "helm" / "etcd-pd" / "templates").iterdir()) if path.is_file()
)


class NoRanks:
    """A gateway's ranks before the engine came."""

    def __len__(self) -> int:
        return 0


class Engine:
    """A gateway's engine before it came."""

    state = EngineState.ABSENT


def names(families: Iterable[Metric]) -> set[str]:
    """Names as they are written: a counter's family drops its ``_total``."""
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


@pytest.fixture
def metric_names(tmp_path: Path) -> set[str]:
    """Every metric of ours."""
    gateway = GatewayMetrics(cast(Ranks, NoRanks()), cast(EngineWatch, Engine()))
    found = names(agent_families(InMemory(tmp_path).agent))
    return found | names(engine_families(Served(), [Load(0, 0)])) | names(gateway.families())


def mentioned(text: str) -> set[str]:
    """Metrics of ours that a text names; a histogram's parts count as itself."""
    found = re.findall(r"\betcd_pd_[a-z_]+\b", text)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found} - {"etcd_pd_"}


def test_every_metric_is_documented_and_none_is_made_up(metric_names: set[str]) -> None:
    assert mentioned(METRICS) == metric_names


def test_runbook_and_chart_name_metrics_that_exist(metric_names: set[str]) -> None:
    assert mentioned(RUNBOOK) <= metric_names
    in_expressions = "\n".join(line for line in CHART.splitlines() if "expr:" in line)
    assert mentioned(in_expressions) and mentioned(in_expressions) <= metric_names


def test_every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert() -> None:
    alerts = re.findall(r"alert: (\w+)", CHART)
    assert len(alerts) == len(set(alerts)) > 0
    assert set(re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)) == set(alerts)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_alerts_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"\bEtcdPd[A-Z]\w+", (ROOT / page).read_text()))
    assert named <= set(re.findall(r"alert: (\w+)", CHART))


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_pictures_that_a_page_shows_exist(page: str) -> None:
    path = ROOT / page
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text())
    assert [name for name in shown if not (path.parent / name).is_file()] == []


def test_every_entry_says_what_it_means_where_to_look_and_what_to_do() -> None:
    for entry in re.split(r"^### ", RUNBOOK.partition("## Without an alert")[0], flags=re.MULTILINE)[1:]:
        title, _, text = entry.partition("\n")
        assert "**Means**" in text and "**Look**" in text, title
        assert "**Do**" in text or "| do |" in text, title


def test_every_command_is_in_the_docs_and_none_is_made_up() -> None:
    listed = {
        name
        for row in re.findall(r"^\| (`etcd-pd .*?) \|", CLI, re.MULTILINE)
        for name in re.findall(r"etcd-pd ([\w-]+)", row)
    }
    assert listed == set(cli.commands)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_commands_that_a_page_shows_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    shown = set(re.findall(r"(?:^|`|\$\(|&& )etcd-pd ([a-z][a-z-]*)", text, re.MULTILINE))
    assert shown <= set(cli.commands)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_no_page_installs_from_an_index_what_no_index_has(page: str) -> None:
    text = (ROOT / page).read_text()
    assert not re.findall(r"pip install [^`\n]*\betcd-pd\b.*", text)
    assert "make package" in text or "pip install" not in text
