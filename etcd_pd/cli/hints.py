"""What to do next about an error: one sentence for each kind, the most special first."""

from __future__ import annotations

from ..errors import (
    AgentUnavailable,
    EtcdPDError,
    InstanceConflict,
    StoreRejected,
    StoreTimeout,
    StoreUnavailable,
)

_NEXT: tuple[tuple[type[EtcdPDError], str], ...] = (
    (AgentUnavailable, "start one with 'etcd-pd agent' or 'etcd-pd run -- COMMAND', or name its socket with --socket"),
    (InstanceConflict, "give this start another name, or end the other one; 'etcd-pd instances' shows it"),
    (StoreTimeout, "'etcd-pd doctor --fix-hints' says which member is slow, and what to do"),
    (StoreUnavailable, "is --etcd right, and etcd up? 'etcd-pd doctor --fix-hints' looks at every part"),
    (
        StoreRejected,
        "'etcd-pd doctor --fix-hints' says what these credentials may do, and whether etcd raised an alarm",
    ),
)


def next_step(error: EtcdPDError) -> str:
    """What helps against an error; empty where its own words say it all."""
    return next((step for kind, step in _NEXT if isinstance(error, kind)), "")
