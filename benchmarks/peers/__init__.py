"""The systems that are compared, each as the two engines that use it see it."""

from __future__ import annotations

from typing import Any, Protocol

#: The DP rank that registers, of so many.
DP_RANK, DP_SIZE = 1, 4
INSTANCE = "prefill-0"


class Writer(Protocol):
    """A prefill engine's side.

    Attributes:
        blocking: register() returns when the room is registered, and not before.
    """

    blocking: bool

    def register(self, room: int) -> None:
        """What the engine's loop calls when a request arrives."""

    def turn(self) -> list[int]:
        """What it calls in every turn; the rooms of which it now knows that they are registered."""

    def release(self, room: int) -> None:
        """The room's KV cache was handed over."""

    def configure(self, message: dict[str, Any]) -> None:
        """What the next run wants of this system alone."""

    def filenos(self) -> list[int]:
        """What becomes readable when turn() has something; none where nothing does."""


class Reader(Protocol):
    """A decode engine's side."""

    def want(self, room: int) -> None:
        """A request with this room has arrived."""

    def turn(self, now: float) -> list[int]:
        """What the engine's loop calls in every turn; the wanted rooms that were found in it."""

    def done(self, room: int) -> float | None:
        """The room's KV cache was fetched; microseconds of one more look at it before, None where that is no call."""

    def forget(self, room: int) -> None:
        """Nobody waits for it any more."""

    def configure(self, message: dict[str, Any]) -> None:
        """What the next run wants of this system alone."""

    def filenos(self) -> list[int]:
        """What becomes readable when turn() has something; none where nothing does."""
