"""An agent on an in-memory store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.agent_in_memory import InMemory, running


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[InMemory]:
    async with running(tmp_path) as world:
        yield world
