"""Rooms that went wrong, in the log: a line each while they are few, and how many more while they are many."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

#: How long after a line another one of the same kind is only counted, seconds.
QUIET_SECONDS = 1.0


class Incidents:
    """Logs them.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def note(self, kind: str, room: int, instance: str, dp_rank: int | None, why: str) -> None:
        """A room ended in an error of this kind.

        Args:
            instance: as the engine named it.
            dp_rank: None where no rank is known.
            why: in words, empty where the kind says it all.
        """
        now = self._clock()
        if now < self._quiet_until.get(kind, now):
            self._unsaid[kind] += 1
            return
        self._quiet_until[kind] = now + QUIET_SECONDS
        more = self._unsaid.pop(kind, 0)
        log.warning(
            "%s room=%d instance=%s dp_rank=%s%s%s",
            kind,
            room,
            instance,
            "unknown" if dp_rank is None else dp_rank,
            f": {why}" if why else "",
            f" (and {more} more since the last such line)" if more else "",
        )
