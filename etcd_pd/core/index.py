"""Waits by what they wait for, in the order of asking, which a set of them would lose."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from .notices import Wait

K = TypeVar("K", bound=Hashable)


class Index(dict[K, dict[Wait, None]], Generic[K]):
    """The waits under each key; a key without any is not there."""

    def add(self, key: K, wait: Wait) -> None:
        """Put a wait under a key."""
        self.setdefault(key, {})[wait] = None

    def discard(self, key: K, wait: Wait) -> None:
        """Take a wait out, if it is there."""
        waits = self.get(key)
        if waits:
            waits.pop(wait, None)
            if not waits:
                del self[key]
