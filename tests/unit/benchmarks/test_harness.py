"""The statistics of the benchmarks."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks import harness


def test_percentiles_are_nearest_ranks() -> None:
    found = harness.percentiles(list(range(1000, 0, -1)))
    assert found == {"n": 1000, "p50": 500, "p99": 990, "p999": 999}
    assert harness.percentiles([]) == {"n": 0, "p50": None, "p99": None, "p999": None}
    assert harness.percentiles([7.0]) == {"n": 1, "p50": 7.0, "p99": 7.0, "p999": 7.0}


def test_a_ratio_has_a_median_and_its_spread() -> None:
    assert harness.ratio([10, 30, 20], [10, 10, 10]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    with pytest.raises(ValueError):
        harness.ratio([1], [1, 2])


def test_cpu_time_is_that_of_a_process_and_its_children() -> None:
    with harness.spinners(1) as (pid,):
        deadline = time.monotonic() + 10
        while harness.cpu_seconds([pid]) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert harness.cpu_seconds([os.getpid()]) > harness.cpu_seconds([pid]) > 0
    assert harness.cpu_seconds([pid]) == 0, "a process that is gone"
