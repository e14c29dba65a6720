"""Fixtures of the chaos suite."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """Decides what a test draws; ``CHAOS_SEED`` repeats a run. Printed, so that a failure says how to."""
    text = os.environ.get("CHAOS_SEED")
    seed = int(text) if text else random.SystemRandom().getrandbits(32)
    print(f"CHAOS_SEED={seed} python -m pytest '{request.node.nodeid}'")
    return seed


@pytest.fixture
def run_directory(request: pytest.FixtureRequest, chaos_seed: int, tmp_path: Path) -> Path:
    """Where a run leaves its history; under ``CHAOS_HISTORIES``, where set, to be looked at afterwards."""
    kept = os.environ.get("CHAOS_HISTORIES")
    if not kept:
        return tmp_path
    name = request.node.name.partition("[")[2].rstrip("]")
    directory = Path(kept).absolute() / f"{name}-{chaos_seed}"
    directory.mkdir(parents=True)
    return directory
