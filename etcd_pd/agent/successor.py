"""A watch that takes the place of another one without a gap, because the store uses another connection now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from ..core.records import WatchResponse
from ..core.watch import Changes, Reopen, WatchMachine, WatchState
from ..store.base import Store, Watch


class Successor(NamedTuple):
    """A watch that has come as far as etcd was when it began; ``learnt``: what it was sent until then."""

    watch: Watch
    responses: AsyncIterator[WatchResponse]
    learnt: list[Changes]


async def open_successor(store: Store, prefix: bytes, end: bytes, machine: WatchMachine) -> Successor | None:
    """Open a watch beside the present one and read it until it has caught up; None where it cannot.

    Raises:
        StoreError: it ended before.
    """
    watch = await store.watch(prefix, machine.revision, end)
    try:
        successor = await _catch_up(watch, machine)
    except BaseException:
        await watch.close()
        raise
    if successor is None:
        await watch.close()
    return successor


async def _catch_up(watch: Watch, machine: WatchMachine) -> Successor | None:
    responses, learnt = aiter(watch), list[Changes]()
    async for response in responses:
        outcome = machine.received(response)
        if isinstance(outcome, Reopen):
            return None
        if isinstance(outcome, Changes):
            learnt.append(outcome)
        if machine.state is WatchState.SYNCED:
            return Successor(watch, responses, learnt)
        if response.created:
            watch.request_progress()  # answered once it has caught up
    return None
