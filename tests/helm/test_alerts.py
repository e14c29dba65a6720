"""The chart's alerts, judged by Prometheus' own promtool: well formed, firing when they should and not otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import ROOT, Object, Objects, rendered, run, template
from tests.helm.conftest import script

pytestmark = pytest.mark.helm

Series = dict[str, str]

#: How long a case goes on, minutes, and a sample each quarter of one: as in the chart.
MINUTES, INTERVAL = 75, "15s"
SAMPLES = MINUTES * 4


@dataclass(frozen=True)
class Case:
    """What Prometheus would see, and whether an alert fires by the end of it.

    Attributes:
        alert: its name.
        when: a word or two.
        fires: for how many things at once.
        series: metrics, short for ``METRIC{LABELS} POD``, and promtool's words for their values.
    """

    alert: str
    when: str
    fires: int
    series: Series = field(hash=False)

    def __str__(self) -> str:
        return f"{self.alert}-{self.when}"


def always(value: float) -> str:
    """One value from beginning to end."""
    return f"{value}x{SAMPLES}"


def grows(step: float, start: float = 0) -> str:
    """A counter."""
    return f"{start}+{step}x{SAMPLES}"


UP, DOWN, GONE = always(1), always(0), f"1x20 _x{SAMPLES}"
MEMBERS = [f"etcd-{number}" for number in range(3)]
AGENTS = ["prefill-a", "decode-b", "decode-c"]


def members(*values: str, metric: str = "up") -> Series:
    """A metric of each member of etcd."""
    return {f"{metric} {name}": value for name, value in zip(MEMBERS, values, strict=False)}


def agents(*values: str) -> Series:
    """Whether each agent, and the engine beside it, answers scrapes; engines load their weights."""
    found = {f'up{{endpoint="metrics"}} {name}': value for name, value in zip(AGENTS, values, strict=False)}
    return found | {f'up{{endpoint="http"}} {name}': DOWN for name in AGENTS}


def ranks(*numbers: int) -> Series:
    """Rooms of some ranks of an instance."""
    return {f'etcd_pd_rank_rooms{{exported_instance="i",dp_rank="{number}"}} prefill-a': UP for number in numbers}


def watch(state: str, *revisions: str) -> Series:
    """The agents' watches."""
    found = {f'etcd_pd_watch_state{{state="{state}"}} {name}': UP for name in AGENTS}
    pairs = zip(AGENTS, revisions, strict=False)
    return found | {f"etcd_pd_watch_revision {name}": revision for name, revision in pairs}


def outcomes(metric: str, good: str, bad: str, of_bad: float) -> Series:
    """Answers, a hundred good ones in a quarter of a minute."""
    both = {good: grows(100), bad: grows(of_bad)}
    return {f'{metric}{{outcome="{outcome}"}} {AGENTS[0]}': value for outcome, value in both.items()}


def fill(metric: str, share: float) -> Series:
    """How full a member's database is."""
    return members(always(1000 * share), metric=metric) | members(
        always(1000), metric="etcd_server_quota_backend_bytes"
    )


def refused(code: str) -> Series:
    """What a member answers to writes."""
    return {f'grpc_server_handled_total{{grpc_code="{code}",grpc_service="etcdserverpb.KV"}} etcd-0': grows(1)}


def cron(*times: str) -> Series:
    """When the CronJob last ran, and last succeeded."""
    names = ("kube_cronjob_status_last_schedule_time", "kube_cronjob_status_last_successful_time")
    return {f'{name}{{cronjob="cell-etcd-pd-certs"}}': value for name, value in zip(names, times, strict=False)}


IN_USE, FILE = "etcd_mvcc_db_total_size_in_use_in_bytes", "etcd_mvcc_db_total_size_in_bytes"
LIVE = 'etcd_pd_session_state{state="live"} prefill-a'
STALE = 'etcd_pd_watch_state{state="stale"} decode-b'
CONFLICTS = 'etcd_pd_registrations_total{outcome="RoomConflict"} prefill-a'
QUEUE, LIMIT = "etcd_pd_queue_rooms prefill-a", "etcd_pd_queue_limit_rooms prefill-a"
REGISTERED, RESOLVED = "etcd_pd_registrations_total", "etcd_pd_resolutions_total"
EXPIRY = "etcd_pd_certificate_expiry_timestamp_seconds prefill-a"
NOSPACE = 'etcd_pd_etcd_alarms{alarm="NOSPACE"} decode-b'

CASES = [
    Case("EtcdPdAgentDown", "all answer", 0, agents(UP, UP, UP)),
    Case("EtcdPdAgentDown", "one does not", 1, agents(UP, DOWN, UP)),
    Case("EtcdPdAgentDown", "one has gone", 1, agents(UP, GONE, UP)),
    Case("EtcdPdAgentDown", "there are none", 1, {}),
    Case("EtcdPdRanksMissing", "all are there", 0, ranks(0, 1)),
    Case("EtcdPdRanksMissing", "one is not", 1, ranks(0)),
    Case("EtcdPdRanksMissing", "there are none", 1, {}),
    Case("EtcdPdViewStale", "one is", 1, {STALE: UP}),
    Case("EtcdPdViewStale", "none is", 0, {STALE: DOWN}),
    Case("EtcdPdAgentDeaf", "all move on", 0, watch("synced", grows(3), grows(3), grows(3))),
    Case("EtcdPdAgentDeaf", "one stands still", 1, watch("synced", grows(3), grows(3), always(9))),
    Case("EtcdPdAgentDeaf", "one stands still and says so", 0, watch("stale", grows(3), grows(3), always(9))),
    Case("EtcdPdAgentDeaf", "nothing happens", 0, watch("synced", always(9), always(9), always(9))),
    Case("EtcdPdAgentDeaf", "prefill sees nothing", 0, watch("synced", always(9), grows(3), grows(3))),
    Case("EtcdPdAgentDeaf", "closed", 3, watch("closed", grows(3), grows(3), grows(3))),
    Case("EtcdPdSessionNotLive", "live", 0, {LIVE: UP}),
    Case("EtcdPdSessionNotLive", "suspect", 1, {LIVE: DOWN}),
    Case("EtcdPdQueueFills", "some wait", 0, {QUEUE: always(40), LIMIT: always(100)}),
    Case("EtcdPdQueueFills", "many wait", 1, {QUEUE: always(60), LIMIT: always(100)}),
    Case("EtcdPdRegistrationsFail", "some do", 0, outcomes(REGISTERED, "Registered", "RankLost", 0.5)),
    Case("EtcdPdRegistrationsFail", "more do", 1, outcomes(REGISTERED, "Registered", "RankLost", 2)),
    Case("EtcdPdRoomsNotResolved", "some are", 0, outcomes(RESOLVED, "Resolved", "PrefillLost", 0.5)),
    Case("EtcdPdRoomsNotResolved", "more are", 1, outcomes(RESOLVED, "Resolved", "PrefillLost", 2)),
    Case("EtcdPdSessionLost", "none was", 0, {"etcd_pd_session_losses_total prefill-a": always(3)}),
    Case("EtcdPdSessionLost", "one was", 1, {"etcd_pd_session_losses_total prefill-a": f"0x{SAMPLES - 9} 1x9"}),
    Case("EtcdPdRoomConflicts", "none", 0, {CONFLICTS: always(3)}),
    Case("EtcdPdRoomConflicts", "one", 1, {CONFLICTS: f"0x{SAMPLES - 9} 1x9"}),
    Case("EtcdPdAlarm", "none", 0, {NOSPACE: DOWN}),
    Case("EtcdPdAlarm", "one", 1, {NOSPACE: UP}),
    Case("EtcdPdNoLeader", "seen by all", 0, members(UP, UP, UP, metric="etcd_server_has_leader")),
    Case("EtcdPdNoLeader", "not seen by one", 1, members(UP, UP, DOWN, metric="etcd_server_has_leader")),
    Case("EtcdPdQuorumLost", "two answer", 0, members(UP, UP, DOWN)),
    Case("EtcdPdQuorumLost", "one answers", 1, members(DOWN, DOWN, UP)),
    Case("EtcdPdQuorumLost", "none answers", 1, members(DOWN, DOWN, DOWN)),
    Case("EtcdPdQuorumLost", "none is there", 1, {}),
    Case("EtcdPdMemberDown", "all answer", 0, members(UP, UP, UP)),
    Case("EtcdPdMemberDown", "one does not", 1, members(UP, UP, DOWN)),
    Case("EtcdPdMemberDown", "one has gone", 1, members(UP, UP, GONE)),
    Case("EtcdPdMemberDown", "none answers", 1, members(DOWN, DOWN, DOWN)),
    Case("EtcdPdDatabaseFills", "half full", 0, fill(IN_USE, 0.5)),
    Case("EtcdPdDatabaseFills", "fuller", 1, fill(IN_USE, 0.71)),
    Case("EtcdPdDatabaseNearQuota", "room left", 0, fill(FILE, 0.89)),
    Case("EtcdPdDatabaseNearQuota", "little left", 1, fill(FILE, 0.91)),
    Case("EtcdPdWritesRefused", "taken", 0, refused("OK")),
    Case("EtcdPdWritesRefused", "refused", 1, refused("ResourceExhausted")),
    Case("EtcdPdCertificateEnds", "far away", 0, {EXPIRY: always(MINUTES * 60 + 15 * 86400 + 60)}),
    Case("EtcdPdCertificateEnds", "near", 1, {EXPIRY: always(15 * 86400)}),
    Case("EtcdPdCertificateEnds", "nobody has one", 0, {}),
    Case("EtcdPdCertificatesNotRenewed", "the last run succeeded", 0, cron(always(100), always(110))),
    Case("EtcdPdCertificatesNotRenewed", "the last run did not", 1, cron(always(200), always(110))),
    Case("EtcdPdCertificatesNotRenewed", "no run ever did", 1, cron(always(200))),
    Case("EtcdPdCertificatesNotRenewed", "nobody counts", 0, {}),
]


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' promtool."""
    return script("debian-program", "promtool", "prometheus")[-1]


def _rules(objects: Objects) -> Object:
    (rule,) = objects.of("PrometheusRule")
    return dict(rule["spec"])


def _alerts(objects: Objects) -> Iterator[Object]:
    for group in _rules(objects)["groups"]:
        yield from group["rules"]


@pytest.mark.parametrize("values", [{}, {"etcd": {"replicas": 1}, "router": {"enabled": False}}])
def test_rules_are_well_formed_when_rendered(promtool: str, tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(_rules(Objects(template("cpu", values)))))
    done = run(promtool, "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_alert_fires_when_it_should(promtool: str, tmp_path: Path, case: Case) -> None:
    rules = [rule for rule in _alerts(rendered("cpu")) if rule["alert"] == case.alert]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "judged", "rules": rules}]}))
    query = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)'
    judged = {
        "interval": INTERVAL,
        "input_series": [{"series": _named(name), "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": f"{MINUTES}m", "exp_samples": [{"labels": "{}", "value": case.fires}]}
        ],
    }
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": INTERVAL, "tests": [judged]}
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(tests))
    done = run(promtool, "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def _named(short: str) -> str:
    """A series' whole name: the pod's and the namespace that the operator puts there."""
    name, _, pod = short.partition(" ")
    metric, _, labels = name.rstrip("}").partition("{")
    own = [label for label in (labels, 'namespace="prod"') if label]
    if pod:
        own.append(f'pod="cell-etcd-pd-{pod}"')
    return f"{metric}{{{','.join(own)}}}"


def test_each_alert_has_cases_when_it_fires_and_when_it_does_not() -> None:
    names = {rule["alert"] for rule in _alerts(rendered("cpu"))}
    for fires in (True, False):
        assert {case.alert for case in CASES if bool(case.fires) is fires} == names


@pytest.mark.parametrize("shape", ["cpu", "external-etcd"])
def test_an_alert_names_its_entry_in_the_runbook_when_it_is_rendered(shape: str) -> None:
    headings = [line for line in (ROOT / "docs" / "runbook.md").read_text().splitlines() if line.startswith("### ")]
    for rule in _alerts(Objects(template(shape, {"prometheusRule": {"enabled": True}}))):
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert f"### {rule['alert']}" in headings


def test_renewal_has_no_alert_when_certificates_are_not_the_charts() -> None:
    objects = Objects(template("existing-secrets", {"prometheusRule": {"enabled": True}}))
    assert "EtcdPdCertificatesNotRenewed" not in {rule["alert"] for rule in _alerts(objects)}


def test_a_majority_is_counted_when_etcd_has_one_member() -> None:
    objects = Objects(template("existing-secrets", {"prometheusRule": {"enabled": True}}))
    (quorum,) = (rule for rule in _alerts(objects) if rule["alert"] == "EtcdPdQuorumLost")
    assert quorum["expr"].endswith("< 1")
