"""What ``etcd-pd status`` says first."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from etcd_pd.cli.tables import MOST_LINES, stale_line, status_tables
from etcd_pd.cli.verdict import count, judge

HOSTILE = "\x1b[2J[red]x"


def shown(found: dict[str, Any]) -> str:
    """The status of a cell, as it is printed."""
    console = Console(width=160, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(
            status_tables(found | {"problems": [one._asdict() for one in judge(found)], "counts": count(found)})
        )
    return capture.get()


def cell(*gone: dict[str, Any], **changes: Any) -> dict[str, Any]:
    memory = {"agent": "a", "socket": "/run/a.sock", "seconds": 600.0, "gone": list(gone)}
    member = {"id": "1", "name": "m", "leader": False, "error": "no answer"}
    etcd = {"cluster_id": "1", "revision": 5, "leases": 1, "alarms": [], "members": [member | {"leader": True}]}
    found = {"root": "/cell", "etcd": etcd, "prefill": [], "decode": [], "agents": [], "rooms": {"lost": 0}}
    return {**found, "memory": memory, **changes}


def gone(name: str, seconds: float, *, left: bool = False) -> dict[str, Any]:
    return {"kind": "decode", "name": name, "rank": None, "seconds": seconds, "left": left}


def test_who_is_gone_comes_first_and_who_left_after_it() -> None:
    lines = shown(cell(gone("d1", 35.4), gone("d2", 600.0, left=True))).splitlines()
    told = "wrong: decode d1 is gone, and did not say that it leaves, for 35 s  (docs/runbook.md, EtcdPdAgentDown)"
    assert told in lines
    assert "left: decode d2, 10 min ago" in lines[lines.index(told) :]
    assert any(line.startswith("there: members of etcd 0 of 1, rank processes 0 of 0, ") for line in lines)
    assert "who is gone is known from the agent on /run/a.sock, for the last 10 min" in lines


def test_a_name_is_shown_as_text_when_it_is_hostile() -> None:
    text = shown(cell(gone(HOSTILE, 1.0), gone(HOSTILE, 1.0, left=True)))
    assert "\x1b" not in text and text.count(r"\x1b[2J[red]x") == 2


def test_the_rest_is_counted_when_many_are_gone() -> None:
    text = shown(cell(*(gone(f"d{n}", 1.0) for n in range(MOST_LINES + 30))))
    assert text.count("is gone, and") <= MOST_LINES and " more: --output json" in text


def test_it_is_said_when_no_agent_remembers() -> None:
    assert "no agent of this cell answers here: who is gone altogether is not known" in shown(cell(memory=None))


def test_rooms_and_etcd_are_not_made_up_when_an_agent_knows_neither() -> None:
    text = shown(cell(etcd=None, rooms=None))
    assert text.startswith("wrong: etcd does not answer") and "rooms: not known: this agent serves prefill" in text


def test_a_stale_view_has_its_age_and_its_agent() -> None:
    line = stale_line({"socket": "/run/a\x1b.sock", "age_seconds": 12.4})
    assert line.plain == r"etcd does not answer; from the agent on /run/a\x1b.sock, 12 s old"
