"""What a rule of the simulation takes for a fault, and what it does not, from histories made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.history import Event
from tests.simulation.rules import withdrawn_is_true
from tests.simulation.world import History

LINGER = 1.0


def history(*events: tuple[float, str, str, dict[str, Any]]) -> History:
    lost = 5.0, "d0", "ended", {"room": 7, "dp_rank": 1, "error": "PrefillLost", "withdrawn": True}
    return History(100.0, LINGER, events=[Event(*event) for event in (*events, lost)])


def stop(at: float, until: float, who: str = "r1.0.0") -> tuple[float, str, str, dict[str, Any]]:
    return at, who, "stopped", {"until": until}


def cut(at: float, dp_rank: int = 1) -> tuple[float, str, str, dict[str, Any]]:
    return at, "nemesis", "cut", {"dp_rank": dp_rank, "process": f"r{dp_rank}.0.0"}


def test_a_rank_is_withdrawn_rightly_when_a_process_of_it_had_died() -> None:
    assert not list(withdrawn_is_true(history((4.0, "r1.0.0", "killed", {"dp_rank": 1}))))


@pytest.mark.parametrize(
    "events",
    [
        [stop(2.0, 4.0), cut(3.0)],
        [stop(2.0, 3.5), stop(3.2, 4.5), cut(3.4)],
    ],
    ids=["stopped once", "stopped again meanwhile"],
)
def test_a_rank_is_withdrawn_rightly_when_it_was_cut_off_and_stopped_for_as_long_as_it_lingers(events: Any) -> None:
    assert not list(withdrawn_is_true(history(*events)))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [(4.0, "r0.0.0", "killed", {"dp_rank": 0})],
        [stop(2.0, 4.0)],
        [cut(3.0)],
        [stop(2.0, 3.9), cut(3.0)],
        [stop(2.0, 4.5), stop(3.2, 3.5), cut(3.0)],
        [stop(3.1, 4.5), cut(3.0)],
        [stop(2.0, 4.5, who="r1.1.0"), cut(3.0)],
        [stop(2.0, 5.5), cut(4.2)],
    ],
    ids=[
        *("nothing was done", "another died", "no cut", "no stop", "it came back in time", "woken by a shorter stop"),
        *("stopped after it was back", "its sibling was stopped", "it lingered no second yet"),
    ],
)
def test_a_rank_is_withdrawn_wrongly_when_its_processes_live(events: Any) -> None:
    assert list(withdrawn_is_true(history(*events)))
