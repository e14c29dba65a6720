"""What is wrong with a cell, in a line each: what is expected and what is there, the worst first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..kubernetes.round_trip import PREFIX

WRONG, DEGRADED = "wrong", "degraded"
#: What helps where an instance, a decode or an agent is gone.
GONE_RUNBOOK = {"prefill": "EtcdPdRanksMissing", "decode": "EtcdPdAgentDown", "agent": "EtcdPdAgentDown"}
#: What is counted, in words.
COUNTED = {
    "members": "members of etcd",
    "ranks": "rank processes",
    "prefill": "prefill instances",
    "decode": "decode instances",
    "agent": "agents",
}


class Problem(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        severity: ``wrong``: requests fail or hang for it; ``degraded``: they do not yet.
        text: in words.
        runbook: the heading of docs/runbook.md that helps.
        seconds: since when, None where nobody knows.
    """

    severity: str
    text: str
    runbook: str
    seconds: float | None = None


def judge(found: dict[str, Any]) -> list[Problem]:
    """The problems of what :func:`~etcd_pd.cli.views.describe_cell` read.

    Without an agent's memory it is only what etcd shows, which forgets who is gone altogether.
    """
    etcd = _etcd(found["etcd"]) if found["etcd"] else [Problem(WRONG, "etcd does not answer", "EtcdPdQuorumLost")]
    return _worst_first([*etcd, *_cell(found)])


def judge_cell(found: dict[str, Any]) -> list[Problem]:
    """Those that are the cell's, and not etcd's own."""
    return _worst_first(list(_cell(found)))


def describe_counts(counts: dict[str, dict[str, int]]) -> str:
    """What :func:`count` found, in words."""
    return ", ".join(f"{COUNTED[what]} {one['there']} of {one['expected']}" for what, one in counts.items())


def count(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """How many there are and how many are expected: members of etcd, rank processes, instances, decodes, agents."""
    counts = {}
    if found["etcd"]:
        members = found["etcd"]["members"]
        counts["members"] = {"there": sum("error" not in one for one in members), "expected": len(members)}
    prefill = found["prefill"]
    there, left = sum(len(one["ranks"]) for one in prefill), sum(len(_gone_ranks(found, one, True)) for one in prefill)
    expected = sum(one.get("processes", len(one["ranks"])) for one in prefill) - left
    counts["ranks"] = {"there": there, "expected": max(there, expected)}
    for kind, present in (("prefill", prefill), ("decode", found["decode"]), ("agent", found["agents"])):
        lost = sum(one["kind"] == kind and not one["left"] for one in _gone(found))
        counts[kind] = {"there": len(present), "expected": len(present) + lost}
    return counts


def _worst_first(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.severity != WRONG)


def _cell(found: dict[str, Any]) -> Iterator[Problem]:
    for instance in found["prefill"]:
        if not instance["id"].startswith(PREFIX):  # else a doctor or a test is at work, on purpose with half its ranks
            yield from _instance(found, instance)
    for one in _gone(found):
        if one["kind"] in GONE_RUNBOOK and not one["left"]:
            text = f"{one['kind']} {one['name']} is gone, and did not say that it leaves"
            yield Problem(WRONG, text, GONE_RUNBOOK[one["kind"]], one["seconds"])
    yield from _others(found)


def _etcd(etcd: dict[str, Any]) -> Iterator[Problem]:
    members = etcd["members"]
    silent = [member["name"] or member["id"] for member in members if "error" in member]
    if not any(member.get("leader") for member in members):
        yield Problem(WRONG, "no member of etcd that answers is the leader", "EtcdPdNoLeader")
    if silent:
        severity = DEGRADED if 2 * len(silent) < len(members) else WRONG
        text = f"{len(members) - len(silent)} of {len(members)} members of etcd answer, not {', '.join(silent)}"
        yield Problem(severity, text, "EtcdPdMemberDown")
    for alarm in etcd["alarms"] or ():
        yield Problem(WRONG, f"etcd raised its alarm {alarm['alarm']} at {alarm['member']}", "EtcdPdAlarm")


def _instance(found: dict[str, Any], instance: dict[str, Any]) -> Iterator[Problem]:
    id, ranks = instance["id"], instance["ranks"]
    if "dp_size" not in instance:
        yield Problem(DEGRADED, f"prefill {id}: ranks without an instance", "EtcdPdRoomsNotResolved")
        return
    left, lost = _gone_ranks(found, instance, True), _gone_ranks(found, instance, False)
    expected = instance["processes"]
    if len(ranks) + len(left) < expected:
        there = {_dp_rank(rank) for rank in (*ranks, *left)}
        missing = sorted(set(range(instance["dp_size"])) - there)
        which = f": dp_rank {', '.join(map(str, missing))} missing" if missing else ""
        text = f"prefill {id}: {len(ranks)} of {expected} rank processes{which}"
        since = max((one["seconds"] for one in lost), default=None)
        yield Problem(WRONG, text, "EtcdPdRanksMissing", since)


def _others(found: dict[str, Any]) -> Iterator[Problem]:
    if not found["prefill"]:
        yield Problem(DEGRADED, "no prefill instance is announced", "EtcdPdRoomsNotResolved")
    lost = found["rooms"]["lost"] if found["rooms"] else 0
    if lost:
        yield Problem(
            DEGRADED, f"{lost} rooms are lost with their ranks, and end with their leases", "EtcdPdSessionLost"
        )


def _gone(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Who is gone, as far as an agent remembers."""
    memory = found.get("memory")
    return memory["gone"] if memory else []


def _gone_ranks(found: dict[str, Any], instance: dict[str, Any], left: bool) -> list[dict[str, Any]]:
    """The rank processes of an instance that is there which are gone: those that left, or those that did not."""
    ranks = [one for one in _gone(found) if one["kind"] == "rank" and one["name"] == instance["id"]]
    return [one for one in ranks if one["left"] is left and _dp_rank(one) < instance.get("dp_size", 0)]


def _dp_rank(rank: dict[str, Any]) -> int:
    return int(rank["rank"].partition(".")[0])
