"""Whatever bytes an engine may send, to a whole agent on an in-memory store: it must outlive them, and serve others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etcd_pd.wire import messages
from tests.support.agent_in_memory import InMemory, running, until
from tests.support.raw_engine import HELLO, heard, raw

#: Attacks on one agent before the next begins with an empty etcd, so that a run of a night does not fill its memory.
ATTACKS_PER_AGENT = 1000

#: Bytes of a packet's length in an input: longer packets than the protocol's are among the attacks.
_HEAD = 3


def as_input(*packets: bytes) -> bytes:
    """One input that stands for these packets."""
    return b"".join(len(packet).to_bytes(_HEAD, "little") + packet for packet in packets)


def as_packets(data: bytes) -> Iterator[bytes]:
    """The packets that an input stands for: each led by its length; the last may be cut short."""
    while len(data) > _HEAD:
        length = int.from_bytes(data[:_HEAD], "little")
        packet, data = data[_HEAD : _HEAD + length], data[_HEAD + length :]
        if packet:
            yield packet


class Attacker:
    """Runs attacks one by one; an exception in any callback of the agent ends it.

    Args:
        directory: where the agent's socket may lie.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_exception)
        self._troubles: list[dict[str, Any]] = []
        self._attacks = 0
        self._running: Any = None
        self._world: InMemory | None = None

    def __call__(self, data: bytes) -> None:
        """One input.

        Raises:
            AssertionError: the agent did not outlive it, or does not serve others any more.
        """
        if self._world is None or self._attacks % ATTACKS_PER_AGENT == 0:
            self._end_agent()
            self._running = running(self._directory)
            self._world = self._loop.run_until_complete(self._running.__aenter__())
        self._attacks += 1
        self._loop.run_until_complete(self._attack(self._world, data))
        assert not self._troubles, self._troubles
        assert not self._world.agent.stats.internal_errors, "its log says which packet it did not handle"

    async def _attack(self, world: InMemory, data: bytes) -> None:
        """Say it all on one connection; then somebody else must still be answered."""
        with raw(world.settings.socket_path) as hostile, raw(world.settings.socket_path) as witness:
            hostile.send(HELLO)
            for packet in as_packets(data):
                try:
                    hostile.send(packet)
                except BlockingIOError:
                    await asyncio.sleep(0)
                except OSError:  # the agent has ended the conversation
                    break
            witness.send(HELLO)
            await until(lambda: self._troubles or heard(witness, messages.VIEW), "the agent answers others")
        await until(lambda: self._troubles or not world.agent.server.connections, "the agent has let go of both")

    def _end_agent(self) -> None:
        if self._running is not None:
            self._loop.run_until_complete(self._running.__aexit__(None, None, None))
            self._running = self._world = None

    def close(self) -> None:
        """End it all."""
        self._end_agent()
        self._loop.close()

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._troubles.append(context)
