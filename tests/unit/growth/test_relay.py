"""What the tables on relays make of measured rounds."""

from __future__ import annotations

import pytest

from benchmarks.growth import measure, relay
from tests.unit.growth.made import row, rows


def test_rounds_are_paired_when_agents_and_rates_are_the_same() -> None:
    found = relay.pairs([*rows(), row("relays", 100.0, decodes=32)])

    assert [(len(straight), len(relayed)) for straight, relayed in found] == [(2, 2), (2, 2)]
    for straight, relayed in found:
        assert {each["decodes"] for each in straight} == {each["decodes"] for each in relayed}
        assert not any(each["proxies"] for each in straight) and all(each["proxies"] for each in relayed)


def test_passes_are_shown_with_their_spread_when_they_differ() -> None:
    rounds = [row("relays", 30.0, decodes=32, proxies=proxies) for proxies in (0, 1, 1, 0)]
    for each, cpu, p50 in zip(rounds, (0.3, 0.1, 0.2, 0.6), (2.0, 4.0, 6.0, 3.0), strict=True):
        each |= {"etcd_cpu": cpu, "resolved_ms": {"p50": p50, "p99": None}}

    straight, relayed = relay.relays(rounds).splitlines()[2:]

    assert "| 32 | 30 | straight |" in straight and "| 15,000 (10,000 to 20,000) | - |" in straight
    assert "| 2.5 (2 to 3) | - | 50 %, 50 % |" in straight
    assert "| 5,000 (3,300 to 6,700) |" in relayed and "| 5 (4 to 6) | - |" in relayed


def test_nothing_is_said_when_relays_were_not_measured() -> None:
    assert relay.relays([each for each in rows() if each["sweep"] != "relays"]) == "*Not measured yet.*"


def test_drift_falls_on_both_when_relays_are_compared() -> None:
    places = {proxies: [n for n, each in enumerate(measure.RELAY_PASSES) if each == proxies] for proxies in (0, 1)}

    assert sum(places[0]) == sum(places[1]) and len(places[0]) == len(places[1])
    assert {count for count, _ in measure.FULL.relayed} == {32, 64}


@pytest.mark.parametrize(("same", "said"), [(True, False), (False, True), (None, False)])
def test_the_page_warns_when_a_second_watch_is_told_of_another_cluster(same: bool | None, said: bool) -> None:
    checks = [each for each in rows() if each["sweep"] == "checks"]
    if same is not None:
        checks[-1]["second_same_cluster"] = same

    assert bool(relay.second_watch(checks)) == said
    cell = {True: "yes", False: "**no**", None: "-"}[same]
    assert f"| the same of a watch like one that stands already | - | {cell} |" in relay.proxy_checks(checks)


@pytest.mark.parametrize("agents", [32, 64])
def test_a_table_has_both_sides_of_each_number_of_agents_when_all_was_measured(agents: int) -> None:
    lines = relay.relays(rows()).splitlines()

    assert [line.split("|")[3].strip() for line in lines if line.startswith(f"| {agents} |")] == ["straight", "relayed"]
