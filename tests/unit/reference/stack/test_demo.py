"""The demo's verdict: every lie is found."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from etcd_pd.cli.report import load_table, request_table, verdict
from etcd_pd.reference.stack.demo import Comparison, Outcome, find_problems, load_by_rank, make_prompts
from etcd_pd.reference.stack.observer import SeenRoom
from etcd_pd.reference.stack.requests import Answer

PROMPTS = make_prompts(2)
SEEN = SeenRoom("prefill-0", dp_rank=1, epoch=5, revision=9, lease=0xABC, seconds_left=300, deleted_at=12)


def answer(number: int, **changes: object) -> Answer:
    told = Answer(
        prompt=PROMPTS[number - 1],
        token_ids=(1, 2, 3),
        prompt_tokens=20,
        room=100 + number,
        instance="prefill-0",
        dp_rank=1,
        epoch=5,
        revision=9,
        lease_id=0xABC,
        source="registry",
        register_to_resolved_ms=1.25,
        ttft_ms=20.5,
    )
    return replace(told, **changes)  # type: ignore[arg-type]


def outcome(one: Answer, seen: SeenRoom | None = SEEN) -> Outcome:
    rooms = {102: SEEN} | ({101: seen} if seen else {})
    return Outcome(PROMPTS, {1: one, 2: answer(2)}, {}, rooms, [])


def test_a_run_without_fault_has_no_problems() -> None:
    assert find_problems(outcome(answer(1))) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dp_rank": 2}, "dp_rank 2 in the answer, 1 in etcd"),
        ({"epoch": 4}, "epoch 4 in the answer, 5 in etcd"),
        ({"revision": 8}, "revision 8 in the answer, 9 in etcd"),
        ({"lease_id": 1}, "lease 1 in the answer, 2748 in etcd"),
        ({"instance": "other"}, "instance other in the answer, prefill-0 in etcd"),
        ({"source": "follow-bootstrap-room"}, "its rank came from follow-bootstrap-room, not from the registry"),
        ({"room": 999}, "etcd never had a key for it"),
    ],
)
def test_an_answer_that_differs_from_etcd_is_named(changes: dict[str, object], problem: str) -> None:
    wrong = answer(1, **changes)
    assert find_problems(outcome(wrong)) == [f"request 1, room {wrong.room}: {problem}"]


@pytest.mark.parametrize(
    "seen",
    [
        replace(SEEN, seconds_left=-1, deleted_at=0),
        replace(SEEN, seconds_left=None, deleted_at=0),
    ],
)
def test_a_living_key_on_a_dead_lease_is_a_problem(seen: SeenRoom) -> None:
    assert find_problems(outcome(answer(1), seen)) == ["request 1, room 101: its key had no living lease"]


def test_a_key_without_lease_is_a_problem_even_when_it_is_gone() -> None:
    assert "its key had no living lease" in find_problems(outcome(answer(1, lease_id=0), replace(SEEN, lease=0)))[0]


def test_a_lease_that_went_with_its_last_room_is_none() -> None:
    assert find_problems(outcome(answer(1), replace(SEEN, seconds_left=-1))) == []


def test_failed_requests_repeated_rooms_and_left_keys_are_problems() -> None:
    run = replace(outcome(answer(1, room=102)), errors={7: "HTTP 500: no"}, keys_left=["/r/v1/rooms/p/1"])
    assert find_problems(run) == [
        "request 7: HTTP 500: no",
        "/r/v1/rooms/p/1 was left behind",
        "two requests had the same room",
    ]


def test_prompts_are_mixed() -> None:
    prompts = make_prompts(32)
    assert len({prompt.text for prompt in prompts}) == 32
    lengths = sorted(len(prompt.text) for prompt in prompts)
    assert lengths[0] < 10 and lengths[-1] > 1000
    assert 5 < sum(prompt.streamed for prompt in prompts) < 27
    assert len({prompt.max_new_tokens for prompt in prompts}) > 3
    assert len(make_prompts(100)) == 100


def test_load_counts_requests_and_prompt_tokens() -> None:
    assert load_by_rank([answer(1), answer(2, dp_rank=0), answer(2)]) == {0: (1, 20), 1: (2, 40)}


def test_the_report_shows_what_was_served_and_what_was_wrong() -> None:
    run = replace(outcome(answer(1)), answers={1: answer(1)}, errors={2: "HTTP 500: no"})
    shown = io.StringIO()
    console = Console(width=160, file=shown)
    comparison = Comparison(equal=0, different=(1,), smallest_margin=0.001)
    console.print(request_table(run), load_table(run, 2), verdict(run, comparison, find_problems(run)))
    text = shown.getvalue()
    for expected in ("101", "abc", "1.25", "20.50", "20+3", "failed"):
        assert expected in text
    assert "disaggregated == undisaggregated: 0/2" in text
    assert "wrong: request 2: HTTP 500: no" in text
    assert "wrong: request 1: other tokens than the plain model's" in text
