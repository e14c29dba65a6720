"""The prefill instances that this process knows, and under which names."""

from __future__ import annotations

from collections.abc import Iterator

from ..wire import messages, to_client
from ..wire.values import PrefillInstance
from .events import Described


class KnownInstances:
    """Filled from INSTANCE packets."""

    def __init__(self) -> None:
        self._instances: dict[str, PrefillInstance] = {}
        self._names: dict[str, str] = {}
        self._numbers: dict[int, str] = {}  # ids, as this agent numbers them
        self._followed: dict[str, None] = {}  # in the order of asking

    def find(self, name: str) -> PrefillInstance | None:
        """The instance that an id or address names."""
        return self._instances.get(self._names.get(name, name))

    def id_of(self, number: int, default: str) -> str:
        """The id of an instance by its number; ``default`` where it was too large to be described."""
        return self._numbers.get(number, default)

    def follow(self, name: str) -> None:
        """Descriptions of what has this name are wanted."""
        self._followed[name] = None

    def ask_again(self) -> Iterator[bytes]:
        """What is followed, for a new agent."""
        return map(messages.encode_follow, self._followed)

    def forget_numbers(self) -> None:
        """There is no agent: another one gives other numbers."""
        self._numbers.clear()

    def read(self, packet: bytes) -> list[Described]:
        """The agent describes an instance; what that says to those who follow it."""
        said = to_client.Instance.decode(packet)
        found = said.instance
        self._numbers[said.number] = said.id
        for name in said.names:
            self._names[name] = said.id
        if found is None:
            self._instances.pop(said.id, None)
        else:
            self._instances[said.id] = found
        return [Described(name, found) for name in said.names if name in self._followed]
