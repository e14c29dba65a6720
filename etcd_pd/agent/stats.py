"""What the agent counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..core.batch import Batch
from ..core.own_room import State
from ..telemetry.metrics import Histogram, latencies

#: How often the summary is logged, seconds.
SUMMARY_SECONDS = 10.0
#: Errors that end a registration, as counted: the rest is ``rejected``.
CONFLICT = "RoomConflict"


@dataclass
class Stats:
    """Totals since the start; :meth:`summary` says what was added since its last call.

    Attributes:
        registered: registrations answered with a token.
        rejected: registrations refused, by the error's name.
        wanted: rooms that engines asked for.
        resolved: of those, how many were answered with a rank.
        ended: of those, how many ended without one, by the error's name.
        protocol_errors: engines that were put out for what they sent.
        internal_errors: packets that a bug of the agent left unhandled.
        register_seconds: from a registration's arrival here to etcd's answer.
        resolve_seconds: from a want's arrival here to its answer.
        transaction_seconds: of one transaction that wrote rooms.
        batch_rooms: rooms in such a transaction.
    """

    registered: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    wanted: int = 0
    resolved: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    protocol_errors: int = 0
    internal_errors: int = 0
    register_seconds: Histogram = field(default_factory=latencies)
    resolve_seconds: Histogram = field(default_factory=latencies)
    transaction_seconds: Histogram = field(default_factory=latencies)
    batch_rooms: Histogram = field(default_factory=lambda: Histogram(1, 7))
    _last: Stats | None = None

    def wrote(self, batch: Batch, sent_at: float, now: float) -> None:
        """A transaction happened. Call it before the book learns of it: it looks at what the rooms waited for."""
        self.transaction_seconds.observe(now - sent_at)
        self.batch_rooms.observe(len(batch.rooms))
        self.register_seconds.observe_each([now - own.asked_at for own in batch.rooms if own.state is State.CREATING])

    @property
    def was_active(self) -> bool:
        """Whether anything was counted since the last :meth:`summary`."""
        last = self._last or Stats()
        return self._totals() != last._totals()

    def _totals(self) -> tuple[int, ...]:
        rooms = (self.registered, self.rejected.total(), self.wanted, self.resolved, self.ended.total())
        return (*rooms, self.protocol_errors, self.internal_errors)

    def summary(self) -> str:
        """``registered=3 conflicts=0 ...`` since the last call, and the latencies' quantiles in milliseconds."""
        before = self._last or Stats()
        self._last = self._copy()
        counts = {
            "registered": self.registered - before.registered,
            "conflicts": self.rejected[CONFLICT] - before.rejected[CONFLICT],
            "rejected": self.rejected.total() - before.rejected.total(),
            "wanted": self.wanted - before.wanted,
            "resolved": self.resolved - before.resolved,
            "failed": self.ended.total() - before.ended.total(),
            "protocol_errors": self.protocol_errors - before.protocol_errors,
        }
        words = [f"{name}={count}" for name, count in counts.items()]
        for name in ("register", "resolve"):
            found: Histogram = getattr(self, f"{name}_seconds").since(getattr(before, f"{name}_seconds"))
            words += [f"{name}_p{percent}_ms={_milliseconds(found, percent)}" for percent in (50, 99)]
        return " ".join(words)

    def _copy(self) -> Stats:
        return Stats(
            registered=self.registered,
            rejected=self.rejected.copy(),
            wanted=self.wanted,
            resolved=self.resolved,
            ended=self.ended.copy(),
            protocol_errors=self.protocol_errors,
            internal_errors=self.internal_errors,
            register_seconds=self.register_seconds.copy(),
            resolve_seconds=self.resolve_seconds.copy(),
        )


def _milliseconds(found: Histogram, percent: int) -> str:
    value = found.quantile(percent / 100)
    return "-" if value is None else f"{value * 1000:.1f}"
