"""Processes that tests start end within a bound, whatever they and the run ignore."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.children import child, end

STUBBORN = "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_is_killed_and_named_when_it_ignores_signals(number: signal.Signals) -> None:
    with child([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        with pytest.raises(AssertionError, match=f"pid {process.pid} had not ended .* after {number.name}"):
            end(process, number, patience=0.2)
        assert process.returncode == -signal.SIGKILL


def test_what_tests_start_can_be_interrupted_when_the_run_ignores_sigint() -> None:
    program = "import signal; before = signal.getsignal(2); import tests.conftest; print(before, signal.getsignal(2))"
    in_background = f'trap "" INT; exec {sys.executable} -c "{program}"'
    root = Path(__file__).parents[2]
    shown = subprocess.check_output(["sh", "-c", in_background], cwd=root, text=True, timeout=50)
    assert shown.startswith("1 ") and "default_int_handler" in shown
