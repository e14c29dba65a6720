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
        self._since: float | None = None
        self._look_at, self._granted = 0.0, 0

    def reset(self) -> None:
        """Nothing is known to be in the way."""
        self._since, self._granted = None, 0

    def has_ended(self, now: float, ttl: int) -> bool:
        """Whether the wait is over; ``ttl``: how long a session of ours lasts, seconds. The other's may last longer."""
        self._since = now if self._since is None else self._since
        return now >= self._since + 2 * max(ttl, self._granted) + 1

    def wants_look(self, now: float) -> bool:
        """Whether to look at the lease now."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        return True

    def note(self, lease: LeaseTimes) -> None:
        """What etcd says of the lease that is in the way."""
        is_another, self._granted = self._granted not in (0, lease.granted), lease.granted
        if is_another or lease.left < lease.granted / 2:
            self._since = None
