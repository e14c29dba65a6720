"""Deadlines of what is awaited."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd.store.deadline import within


async def forever(event: asyncio.Event) -> None:
    while True:
        await within(event.wait(), 60)


@pytest.mark.asyncio
async def test_a_task_ends_when_it_is_cancelled_together_with_the_answer() -> None:
    """asyncio.wait_for() of Python 3.11 swallows that cancellation, and the task goes on."""
    event = asyncio.Event()
    task = asyncio.create_task(forever(event))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    event.clear()
    await asyncio.wait([task], timeout=2)
    ended = task.cancelled()
    task.cancel()
    assert ended


@pytest.mark.asyncio
async def test_the_deadline_is_kept_when_no_answer_comes() -> None:
    with pytest.raises(asyncio.TimeoutError):
        await within(asyncio.Event().wait(), 0.01)


@pytest.mark.asyncio
async def test_an_error_is_passed_on_when_it_comes_in_time() -> None:
    async def fail() -> None:
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        await within(fail(), 60)
