"""What the agent counts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Stats:
    """Totals since the start; :meth:`summary` says what was added since its last call."""

    registered: int = 0
    rejected: int = 0
    wanted: int = 0
    resolved: int = 0
    ended: int = 0
    protocol_errors: int = 0
    interval_seconds: float = field(default=10.0, metadata={"setting": True})
    _last: dict[str, int] = field(default_factory=dict, metadata={"setting": True})

    def summary(self) -> str:
        """``registered=3 rejected=0 ...`` since the last call."""
        now = {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata}
        parts = [f"{name}={total - self._last.get(name, 0)}" for name, total in now.items()]
        self._last = now
        return " ".join(parts)
