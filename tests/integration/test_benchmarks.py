"""A benchmark's rig, once each way: it measures what it says, whatever that is."""

from __future__ import annotations

import pytest

from benchmarks import rig
from benchmarks.rounds import MODES, at_rate_row

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]


def test_a_run_at_a_rate_and_one_flat_out() -> None:
    with rig.rig(["etcd_pd", "floor"]) as systems:
        for case in (rig.OURS, rig.FLOOR):
            row = at_rate_row([systems.at_rate(case, 100, 0.3, MODES["both idle"])], case=case.name)
            assert (row["missing"], row["wait_ms"]["n"], row["acknowledged_ms"]["n"]) == (0, 30, 30)
            assert row["due_ms"]["n"] == 30 and row["due_ms"]["p50"] >= row["wait_ms"]["p50"]
            assert row["cpu_us_per_room"]["all"] > 0
            fast = systems.flat_out(case, 500, 100, wanted=True)
            assert fast["rooms"] == 500 and fast["rooms_per_second"] > 0
