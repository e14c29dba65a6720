"""What a run leaves behind: JSON lines, from every process that took part, on the machine's one monotonic clock.

Every line has ``t`` (seconds), ``who`` (a process, unique in the run) and ``what``; the rest depends on ``what``:

=============  ====================================================================================================
prefill ranks  ``announced`` instance dp_rank epoch; ``rank_ended`` epoch; ``refused`` error; ``register`` instance
               dp_rank room; ``registered`` instance dp_rank room epoch token lease; ``rejected`` instance dp_rank
               room error; ``release`` instance room; ``fail`` instance room
decodes        ``want`` instance room timeout; ``resolved`` instance room dp_rank epoch revision stale; ``known`` the
               same, looked up again later; ``ended`` instance room error, and dp_rank epoch where it is
               PrefillLost; ``done`` instance room; ``view`` revision view
the witness    ``rank`` instance dp_rank epoch revision alive; ``room`` instance room token revision alive
the nemesis    ``fault`` name; ``healed`` name number agents; ``revoked`` lease; ``void``: another history of etcd
               begins; ``restarted``: all processes of an instance have died
the auditor    ``caught_up`` agent healed seconds; ``audited`` agent instance room etcd view
=============  ====================================================================================================
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One line of a history."""

    t: float
    who: str
    what: str
    data: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Recorder:
    """Writes one process's history. What flush() has written survives a SIGKILL of the process."""

    def __init__(self, path: Path, who: str) -> None:
        self._file = path.open("a", buffering=1 << 20)
        self._who = who

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def __call__(self, what: str, **data: Any) -> None:
        """Record that something happened now."""
        line = {"t": round(time.monotonic(), 6), "who": self._who, "what": what, **data}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Hand what was recorded to the kernel."""
        self._file.flush()


def read(paths: Iterable[Path]) -> list[Event]:
    """All events of these files, in order of time. A killed process's last line may be torn: it is left out."""
    events = [event for path in paths for event in _lines(path)]
    events.sort(key=lambda event: event.t)
    return events


def _lines(path: Path) -> Iterator[Event]:
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                data = json.loads(line)
                yield Event(data.pop("t"), data.pop("who"), data.pop("what"), data)
