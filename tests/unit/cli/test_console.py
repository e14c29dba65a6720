"""Tables on a terminal of 80 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from etcd_pd.cli.console import plain_table, shorten
from etcd_pd.cli.report import request_table
from etcd_pd.cli.tables import instance_tables, room_table
from etcd_pd.reference.stack.demo import Outcome, make_prompts
from etcd_pd.reference.stack.requests import Answer

LONG = "prefill-llama-3-70b-instruct-of-the-first-fleet-0"
RANK = {"name": "2", "epoch": 123456, "state": "serving", "address": "192.168.100.101:40537", "rooms": 1234}
LEASE = "756ba2086b4b2a24"
CELL = {
    "root": "/etcd_pd/default",
    "prefill": [{"id": LONG, "policy": "round_robin", "state": "serving", "ranks": [RANK]}],
    "decode": [{"id": LONG, "address": "192.168.100.101:31001", "lease": LEASE, "seconds_left": 5}],
    "agents": [{"id": LONG, "lease": LEASE, "seconds_left": 5}],
}
ROOM = {"instance": LONG, "room": str(2**64 - 1), "dp_rank": 2, "epoch": 123456, "state": "assigned", "reason": ""}
ROOMS = {"root": "/etcd_pd/default", "revision": 7, "rooms": [{**ROOM, "lease": LEASE, "seconds_left": 325}]}


def rendered(what: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    output: Any = console.file
    return str(output.getvalue()).splitlines()


@pytest.mark.parametrize(
    ("table", "whole"),
    [
        (instance_tables(CELL), ["192.168.100.101:40537", "192.168.100.101:31001", "round_robin", "123456", "1234"]),
        (room_table(ROOMS), [str(2**64 - 1), "123456", "assigned", "325 s"]),
    ],
    ids=["instances", "rooms"],
)
def test_names_lose_their_middle_and_nothing_else_breaks_when_there_are_80_columns(
    table: RenderableType, whole: list[str]
) -> None:
    lines = rendered(table, 80)
    assert max(map(len, lines)) <= 80
    assert all(any(word in line for line in lines) for word in whole), lines
    names = [line.split()[0] for line in lines if "…" in line and line.strip().startswith("pre")]
    assert all(name.endswith("-0") for name in names)
    assert not any(LONG in line for line in lines)


def test_a_title_stays_on_one_line_when_its_table_is_narrower() -> None:
    title = "etcd cluster cdf818194e3a8c32 at revision 1234567, 12 leases"
    table = plain_table(title, "member", "role")
    table.add_row("etcd-0", "leader")
    assert rendered(table, 80)[0].rstrip() == title
    assert max(map(len, rendered(table, 40))) <= 40


def test_the_demo_s_rows_stay_whole_when_there_are_80_columns() -> None:
    prompts = make_prompts(32)
    answers = {
        prompt.number: Answer(
            prompt=prompt,
            token_ids=(1,) * 24,
            prompt_tokens=483,
            room=2**64 - prompt.number,
            instance="prefill-0",
            dp_rank=3,
            epoch=5,
            revision=1234,
            lease_id=0x756BA2086B4B2A24,
            source="registry",
            register_to_resolved_ms=139.84,
            ttft_ms=1118.33,
        )
        for prompt in prompts
    }
    lines = rendered(request_table(Outcome(prompts, answers, {}, {}, [])), 80)
    assert max(map(len, lines)) <= 80
    rows = [line.replace(" SSE", "").split() for line in lines if "483+24" in line]
    assert len(rows) == 32 and {len(row) for row in rows} == {8}
    assert rows[0][1:3] == [str(2**64 - 1), "3"] and rows[0][4:] == ["1234", "139.84", "1118.33", "483+24"]
    assert any({"resolved", "revision", "tokens", "TTFT"} <= set(line.split()) for line in lines)


def test_names_are_whole_when_there_is_room() -> None:
    for table in (instance_tables(CELL), room_table(ROOMS)):
        text = "\n".join(rendered(table, 160))
        assert LONG in text and LEASE in text or "lease" not in text
        assert "…" not in text


def test_a_port_is_kept_when_even_the_address_has_no_room() -> None:
    address = "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:40537"
    instance = {"id": LONG, "policy": "round_robin", "state": "serving", "ranks": [{**RANK, "address": address}]}
    lines = rendered(instance_tables({**CELL, "prefill": [instance]}), 80)
    assert any(":40537" in line for line in lines), lines


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("prefill-0", 9, "prefill-0"), ("prefill-0", 8, "pre…ll-0"), ("prefill-0", 2, "…0"), ("a", 1, "a")],
)
def test_a_text_keeps_start_and_end_when_it_is_shortened(text: str, width: int, shown: str) -> None:
    assert shorten(text, width) == shown
