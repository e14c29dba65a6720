"""What is wrong with a cell, from what etcd shows of it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from etcd_pd.cli.verdict import DEGRADED, WRONG, Problem, count, judge

RUNBOOK = Path(__file__).parents[3] / "docs" / "runbook.md"
MEMBERS = [{"id": f"{n}", "name": f"etcd-{n}", "leader": n == 0} for n in range(3)]
RANKS = [{"rank": f"{dp}.0.{tp}.0"} for dp in (0, 1) for tp in (0, 1)]
HEALTHY: dict[str, Any] = {
    "etcd": {"members": MEMBERS, "alarms": []},
    "prefill": [{"id": "p", "dp_size": 2, "processes": 4, "ranks": RANKS}],
    "decode": [],
    "agents": [],
    "rooms": {"assigned": 5, "failed": 1, "lost": 0, "unreadable": 0},
}


def cell(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(HEALTHY), **changes}


def members(*silent: int) -> dict[str, Any]:
    found = [{**one, "error": "no answer", "leader": False} if n in silent else one for n, one in enumerate(MEMBERS)]
    return {"members": found, "alarms": []}


def prefill(ranks: list[str], **changes: Any) -> list[dict[str, Any]]:
    return [{"id": "p", "dp_size": 2, "processes": 4, "ranks": [{"rank": rank} for rank in ranks], **changes}]


def gone(kind: str, name: str, rank: str | None = None, *, left: bool = False, seconds: float = 35.0) -> dict[str, Any]:
    return {"kind": kind, "name": name, "rank": rank, "seconds": seconds, "left": left}


def memory(*them: dict[str, Any]) -> dict[str, Any]:
    return {"agent": "a", "socket": "/run/a.sock", "seconds": 600.0, "gone": list(them)}


@pytest.mark.parametrize("kind", ["prefill", "decode", "agent"])
def test_who_is_gone_is_wrong_when_it_did_not_leave(kind: str) -> None:
    found = cell(memory=memory(gone(kind, "x"), gone(kind, "y", left=True)))
    (problem,) = judge(found)
    assert (problem.severity, problem.seconds) == (WRONG, 35.0)
    assert problem.text == f"{kind} x is gone, and did not say that it leaves"
    assert f"### {problem.runbook}" in RUNBOOK.read_text().splitlines()


def test_a_missing_rank_has_its_time_when_an_agent_saw_it_go() -> None:
    ranks = prefill(["0.0.0.0", "0.0.1.0"])
    lost = memory(gone("rank", "p", "1.0.0.0", seconds=35.0), gone("rank", "p", "1.0.1.0", seconds=34.0))
    (problem,) = judge(cell(prefill=ranks, memory=lost))
    assert problem.text == "prefill p: 2 of 4 rank processes: dp_rank 1 missing" and problem.seconds == 35.0
    other = memory(gone("rank", "q", "1.0.0.0"))
    assert [one.seconds for one in judge(cell(prefill=ranks, memory=other))] == [None]


def test_a_rank_is_not_missing_when_it_was_drained() -> None:
    ranks = prefill(["0.0.0.0", "0.0.1.0", "1.0.0.0"])
    assert judge(cell(prefill=ranks, memory=memory(gone("rank", "p", "1.0.1.0", left=True)))) == []
    (problem,) = judge(
        cell(prefill=prefill(["0.0.0.0", "0.0.1.0"]), memory=memory(gone("rank", "p", "1.0.1.0", left=True)))
    )
    assert problem.severity == WRONG


def test_a_round_trip_s_missing_rank_is_not_missed_when_a_doctor_is_at_work() -> None:
    found = cell(
        prefill=[*prefill(["0.0.0.0", "0.0.1.0", "1.0.0.0", "1.0.1.0"]), *prefill([], id="not-an-engine-host-1")]
    )
    assert judge(found) == []


def test_what_is_there_is_counted_against_what_is_expected() -> None:
    lost = memory(gone("decode", "d"), gone("agent", "a", left=True), gone("rank", "p", "1.0.1.0"))
    found = cell(etcd=members(2), prefill=prefill(["0.0.0.0", "0.0.1.0", "1.0.0.0"]), memory=lost)
    assert {what: (one["there"], one["expected"]) for what, one in count(found).items()} == {
        "members": (2, 3),
        "ranks": (3, 4),
        "prefill": (1, 1),
        "decode": (0, 1),
        "agent": (0, 0),
    }
    assert "members" not in count(cell(etcd=None))


def test_etcd_itself_is_wrong_when_only_an_agent_answers() -> None:
    (problem,) = judge(cell(etcd=None, rooms=None))
    assert (problem.severity, problem.text) == (WRONG, "etcd does not answer")


def test_nothing_is_said_when_all_is_there() -> None:
    assert judge(HEALTHY) == []


@pytest.mark.parametrize(
    ("found", "severity", "text"),
    [
        (cell(etcd=members(2)), DEGRADED, "2 of 3 members of etcd answer, not etcd-2"),
        (cell(etcd=members(1, 2)), WRONG, "1 of 3 members of etcd answer, not etcd-1, etcd-2"),
        (cell(etcd=members(0)), WRONG, "no member of etcd that answers is the leader"),
        (
            cell(etcd={"members": MEMBERS, "alarms": [{"alarm": "NOSPACE", "member": "etcd-1"}]}),
            WRONG,
            "etcd raised its alarm NOSPACE at etcd-1",
        ),
        (cell(prefill=prefill(["0.0.0.0", "0.0.1.0"])), WRONG, "prefill p: 2 of 4 rank processes: dp_rank 1 missing"),
        (cell(prefill=prefill(["0.0.0.0", "0.0.1.0", "1.0.0.0"])), WRONG, "prefill p: 3 of 4 rank processes"),
        (cell(prefill=prefill([])), WRONG, "prefill p: 0 of 4 rank processes: dp_rank 0, 1 missing"),
        (cell(prefill=[{"id": "p", "state": "gone", "ranks": []}]), DEGRADED, "prefill p: ranks without an instance"),
        (cell(prefill=[]), DEGRADED, "no prefill instance is announced"),
        (
            cell(rooms={"assigned": 0, "failed": 0, "lost": 3, "unreadable": 0}),
            DEGRADED,
            "3 rooms are lost with their ranks, and end with their leases",
        ),
        (cell(etcd={"members": MEMBERS, "alarms": None}), None, ""),
    ],
)
def test_what_is_not_as_expected_is_named(found: dict[str, Any], severity: str | None, text: str) -> None:
    problems = judge(found)
    assert [(one.severity, one.text) for one in problems[:1]] == ([(severity, text)] if severity else [])


def test_the_worst_comes_first_when_several_are_wrong() -> None:
    problems = judge(cell(etcd=members(2), prefill=prefill([])))
    assert [problem.severity for problem in problems] == [WRONG, DEGRADED]


def test_every_problem_leads_to_a_heading_of_the_runbook() -> None:
    found = cell(
        etcd={**members(0, 1), "alarms": [{"alarm": "NOSPACE", "member": "etcd-1"}]},
        prefill=[*prefill([]), {"id": "q", "ranks": []}],
        rooms={"lost": 1},
    )
    headings = RUNBOOK.read_text().splitlines()
    problems: list[Problem] = [*judge(found), *judge(cell(prefill=[]))]
    assert len(problems) == 7 and all(f"### {problem.runbook}" in headings for problem in problems)
