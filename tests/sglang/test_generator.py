"""SGLang's own load generator, of SGLang's environment, in this project's: ``make bench-ttft`` sends its requests."""

from __future__ import annotations

import subprocess
import sys


def test_the_load_generator_starts_when_it_runs_in_this_environment() -> None:
    command = [sys.executable, "-m", "benchmarks.ttft.generator", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert "--request-rate" in found.stdout
