"""How long a claim waits for what another process left under its key."""

from __future__ import annotations

from .records import LeaseTimes

#: How often the lease in the way is looked at, seconds: half of the shortest lease's last half.
LOOK_SECONDS = 0.5


class Patience:
    """Waits for as long as the other's session may last if it is dead, and not for one that is kept alive.

    The lease of a dead one may last longer than its time: each election of etcd's gives it the whole of it again. But
    nobody renews it in between, so that less than half is left now and then; a living one is renewed each third.
    """

    def __init__(self) -> None:
        self._until = self._look_at = 0.0

    def reset(self) -> None:
        """Nothing is known to be in the way."""
        self._until = 0.0

    def has_ended(self, now: float, ttl: int) -> bool:
        """Whether the wait is over; ``ttl``: how long a session lasts, seconds."""
        self._until = self._until or now + 2 * ttl + 1
        return now >= self._until

    def wants_look(self, now: float) -> bool:
        """Whether to look at the lease now."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        return True

    def note(self, lease: LeaseTimes) -> None:
        """What etcd says of the lease that is in the way."""
        if lease.left < lease.granted / 2:
            self._until = 0.0
