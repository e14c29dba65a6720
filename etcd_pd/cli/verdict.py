"""What is wrong with a cell, in a line each: what is expected and what is there, the worst first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

WRONG, DEGRADED = "wrong", "degraded"


class Problem(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        severity: ``wrong``: requests fail or hang for it; ``degraded``: they do not yet.
        text: in words.
        runbook: the heading of docs/runbook.md that helps.
    """

    severity: str
    text: str
    runbook: str


def judge(found: dict[str, Any]) -> list[Problem]:
    """The problems of what :func:`~etcd_pd.cli.views.describe_cell` read.

    Only what etcd shows: an instance or agent that is gone altogether is not missed, for etcd forgets it.
    """
    etcd = _etcd(found["etcd"]) if found["etcd"] else [Problem(WRONG, "etcd does not answer", "EtcdPdQuorumLost")]
    problems = [*etcd, *_prefill(found["prefill"]), *_others(found)]
    return sorted(problems, key=lambda problem: problem.severity != WRONG)


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


def _prefill(instances: list[dict[str, Any]]) -> Iterator[Problem]:
    for instance in instances:
        there = {int(rank["rank"].partition(".")[0]) for rank in instance["ranks"]}
        expected = instance.get("processes", 0)
        if "dp_size" not in instance:
            yield Problem(DEGRADED, f"prefill {instance['id']}: ranks without an instance", "EtcdPdRoomsNotResolved")
        elif len(instance["ranks"]) < expected:
            missing = sorted(set(range(instance["dp_size"])) - there)
            which = f": {', '.join(map(str, missing))} missing" if missing else ""
            text = f"prefill {instance['id']}: {len(instance['ranks'])} of {expected} rank processes{which}"
            yield Problem(WRONG, text, "EtcdPdRoomsNotResolved")


def _others(found: dict[str, Any]) -> Iterator[Problem]:
    if not found["prefill"]:
        yield Problem(DEGRADED, "no prefill instance is announced", "EtcdPdRoomsNotResolved")
    lost = found["rooms"]["lost"] if found["rooms"] else 0
    if lost:
        yield Problem(
            DEGRADED, f"{lost} rooms are lost with their ranks, and end with their leases", "EtcdPdSessionLost"
        )
