"""What a process, the machine and etcd have used so far; between two looks lies what something cost."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import psutil
from prometheus_client.parser import text_string_to_metric_families

#: What is taken from etcd's own /metrics: our name, the samples', and the gRPC method that they are of.
_SAMPLES = {
    "txns": ("grpc_server_handled_total", "Txn"),
    "puts": ("etcd_mvcc_put_total", ""),
    "deletes": ("etcd_mvcc_delete_total", ""),
    "messages": ("grpc_server_msg_sent_total", "Watch"),
    "asked": ("grpc_server_msg_received_total", "Watch"),
    "keepalives": ("grpc_server_msg_sent_total", "LeaseKeepAlive"),
    "sent_bytes": ("etcd_network_client_grpc_sent_bytes_total", ""),
    "received_bytes": ("etcd_network_client_grpc_received_bytes_total", ""),
    "granted": ("etcd_debugging_lease_granted_total", ""),
    "revoked": ("etcd_debugging_lease_revoked_total", ""),
    "fsync_seconds": ("etcd_disk_wal_fsync_duration_seconds_sum", ""),
    "fsyncs": ("etcd_disk_wal_fsync_duration_seconds_count", ""),
    "database": ("etcd_mvcc_db_total_size_in_use_in_bytes", ""),
}


@dataclass(frozen=True)
class Look:
    """Everything at one moment.

    Attributes:
        at: monotonic seconds.
        cpu: CPU seconds by process id.
        busy: CPU seconds that all cores of the machine together were not idle.
        etcd: etcd's own counters, by the names above.
    """

    at: float
    cpu: Mapping[int, float]
    busy: float
    etcd: Mapping[str, float] = field(default_factory=dict)


def look(pids: Iterable[int], etcd: str) -> Look:
    """Look at these processes, and at etcd at this endpoint."""
    counted = scrape(etcd)
    return Look(time.monotonic(), {pid: cpu_seconds(pid) for pid in pids}, busy_seconds(), counted)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, to the nanosecond; threads that ended count. It is clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def busy_seconds() -> float:
    """CPU seconds that the cores were not idle, since boot."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def scrape(endpoint: str) -> dict[str, float]:
    """etcd's counters."""
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=5) as answer:
        return parse(answer.read().decode())


def parse(text: str) -> dict[str, float]:
    """The counters in what /metrics says; each is the sum over its labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        ours: sum(
            one.value for one in samples if one.name == name and (not method or one.labels["grpc_method"] == method)
        )
        for ours, (name, method) in _SAMPLES.items()
    }
