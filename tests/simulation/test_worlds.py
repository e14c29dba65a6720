"""A few agents and engines under faults, from seeds: rules hold, and every run is the same."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS, WORLDS, Plant, catch, dead_epochs_accepted, endings_said_once, no_guard
from tests.simulation.node import TTL
from tests.simulation.plan import FAULTS, POLICIES, Plan
from tests.simulation.rules import KNOWN, RULES
from tests.simulation.shrink import shrink, tell
from tests.simulation.world import History, simulate

pytestmark = pytest.mark.timeout(240)

#: What etcd may take beyond a session's TTL to say that it has ended, seconds.
SLACK = 2.0


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[tuple[Plan, History]]]:
    logging.disable(logging.CRITICAL)
    yield [(plan, simulate(plan)) for plan in Plan.fixed()]
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xfail(reason=KNOWN[name], strict=True)] if name in KNOWN else [])
        for name in RULES
    ],
)
def test_a_rule_holds_in_every_world(name: str, worlds: list[tuple[Plan, History]]) -> None:
    for plan, history in worlds:
        broken = next(RULES[name](history), None)
        assert not broken, broken if name in KNOWN else tell(plan, RULES[name])


def test_every_kind_of_fault_and_of_outcome_occurs(worlds: list[tuple[Plan, History]]) -> None:
    assert {kind for plan, _ in worlds for _, kind, *_ in plan.faults} == set(FAULTS)
    said = {(event.what, event.data.get("error", "")) for _, history in worlds for event in history.events}
    for what in ("registered", "resolved", "release", "fail", "rank_ended", "room", "rank"):
        assert (what, "") in said
    assert {("ended", "PrefillLost"), ("ended", "RoomFailed")} <= said
    assert {plan.policy for plan, _ in worlds} == set(POLICIES) and {plan.tp for plan, _ in worlds} >= {1, 3}
    rooms = [room for plan, _ in worlds for room in plan.rooms]
    assert {(room.named, room.by_address) for room in rooms} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }
    assert any(room.lot for room in rooms) and any(plan.linger for plan, _ in worlds)


def test_decode_is_told_in_time_when_a_node_dies_with_half_of_a_rank(worlds: list[tuple[Plan, History]]) -> None:
    found = 0
    for plan, history in worlds:
        faults = [event.t for event in history.events if event.what == "fault" and event.data["name"] == "node dies"]
        for began in faults if plan.tp > 1 else ():
            killed = {event.who for event in history.events if event.what == "killed" and 0 <= event.t - began < 0.1}
            died = Counter(int(who[1:].partition(".")[0]) for who in killed)
            halves = {dp_rank for dp_rank, processes in died.items() if processes < plan.tp}
            lost = [event for event in history.events if event.data.get("error") == "PrefillLost"]
            found += any(event.dp_rank in halves and 0 < event.t - began < TTL + SLACK for event in lost)
    assert found > 1, "the other half's agents went on"


def digest(seed: int) -> str:
    """Of all that happened."""
    return hashlib.sha256(repr(simulate(Plan.draw(seed)).events).encode()).hexdigest()


def test_a_world_is_the_same_in_every_process_whatever_its_hashes_are() -> None:
    program = f"from {__name__} import *; logging.disable(logging.CRITICAL); print(digest(3))"
    told = set()
    for hashes in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": hashes}
        command = [sys.executable, "-c", program]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120, check=True)
        told.add(done.stdout)
    assert len(told) == 1


def test_a_broken_world_is_made_smaller_and_breaks_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    dead_epochs_accepted(monkeypatch, random.Random())
    rule = RULES["rule_2"]
    plan = next(plan for plan in map(Plan.draw, range(20)) if any(rule(simulate(plan))))
    smaller, history = shrink(plan, rule)
    assert 0 < len(smaller.faults) < len(plan.faults) and any(rule(history))
    assert any(rule(simulate(smaller))), "again"


# --- what the judge must see: each mutant is caught within so many worlds


@pytest.mark.parametrize("plant", [no_guard, dead_epochs_accepted, endings_said_once], ids=lambda plant: plant.__name__)
def test_a_mutant_is_caught_within_ten_worlds(plant: Plant) -> None:
    """`make mutants` looks for the others."""
    [mutant] = [mutant for mutant in MUTANTS if mutant.plant is plant]
    assert any(catch(mutant, seed) for seed in range(WORLDS))
