"""What the local stack consists of: the command line of each process, in the order of their start.

Each is the command that a person would type, so the log files in the run directory also show how to do it by hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ...config import bracketed
from ..local.process import free_ports
from .settings import StackSettings

PREFILL = "prefill-0"


class Service(NamedTuple):
    """A process to start.

    Attributes:
        name: what messages and its log file call it.
        command: program and arguments.
        answers_at: the URL or Unix socket that answers once it is ready.
    """

    name: str
    command: list[str]
    answers_at: str


@dataclass(frozen=True)
class Addresses:
    """Where everything of a stack is; ``stack.json`` in the run directory holds the same.

    Attributes:
        etcd: endpoints of etcd.
        root: key prefix of the cell.
        router: URL that requests go to.
        prefill: URL of the prefill instance.
        bootstrap_port: port half of its bootstrap address; the host half is that of ``prefill``.
        decode: URL of each decode instance, by its id.
        sockets: the agents' sockets, by the id of the instance that each serves.
        metrics: where agents and instances answer Prometheus, by the name of the process.
    """

    etcd: tuple[str, ...]
    root: str
    router: str
    prefill: str
    bootstrap_port: int
    decode: dict[str, str]
    sockets: dict[str, str]
    metrics: dict[str, str]


def choose_addresses(settings: StackSettings, etcd: Sequence[str], socket_dir: Path) -> Addresses:
    """Free ports and socket paths for everything but etcd."""
    decode = [f"decode-{number}" for number in range(settings.decode_instances)]
    router_port, prefill_port, bootstrap_port, *others = free_ports(3 + len(decode) + len(decode) + 1)
    decode_ports, metrics_ports = others[: len(decode)], others[len(decode) :]
    instances = {PREFILL: prefill_port, **dict(zip(decode, decode_ports, strict=True))}
    agents = dict(zip((f"agent-{name}" for name in instances), metrics_ports, strict=True))
    base = f"http://{bracketed(settings.host)}"
    return Addresses(
        etcd=tuple(etcd),
        root=settings.root,
        router=f"{base}:{settings.port or router_port}",
        prefill=f"{base}:{prefill_port}",
        bootstrap_port=bootstrap_port,
        decode={name: f"{base}:{port}" for name, port in zip(decode, decode_ports, strict=True)},
        sockets={name: str(socket_dir / f"{name}.sock") for name in instances},
        metrics={name: f"{base}:{port}/metrics" for name, port in {**agents, **instances}.items()},
    )


def services(settings: StackSettings, at: Addresses) -> list[list[Service]]:
    """The stages of the start: a stage's processes start together, when those of the stage before are ready."""
    agents = [_agent(name, path, at) for name, path in at.sockets.items()]
    decodes = [_decode(settings, name, url, at) for name, url in at.decode.items()]
    return [agents, [_prefill(settings, at), *decodes], [_router(settings, at)]]


def _etcd_pd(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "etcd_pd", *arguments]


def _agent(instance: str, socket_path: str, at: Addresses) -> Service:
    # one agent an instance, as in production, where each pod has its own
    command = _etcd_pd("agent", "--etcd", ",".join(at.etcd), "--root", at.root, "--agent-id", f"agent-{instance}")
    name = f"agent-{instance}"
    command += ["--socket", socket_path, "--metrics-listen", urlsplit(at.metrics[name]).netloc]
    return Service(name, command, socket_path)


def _prefill(settings: StackSettings, at: Addresses) -> Service:
    command = _etcd_pd("prefill", "--dp-size", str(settings.dp_size), "--policy", settings.policy)
    command += ["--bootstrap-port", str(at.bootstrap_port), *_engine(settings, PREFILL, at.prefill, at)]
    return Service(PREFILL, command, f"{at.prefill}/health")


def _decode(settings: StackSettings, name: str, url: str, at: Addresses) -> Service:
    return Service(name, [*_etcd_pd("decode"), *_engine(settings, name, url, at)], f"{url}/health")


def _engine(settings: StackSettings, name: str, url: str, at: Addresses) -> list[str]:
    flags = ["--instance", name, "--host", settings.host, "--port", _port(url), "--socket", at.sockets[name]]
    # all ranks share this machine's CPUs, and none of them knows of the other instances
    ranks = settings.dp_size + settings.decode_instances
    flags += ["--threads", str(max(1, len(os.sched_getaffinity(0)) // ranks))]
    return [*flags, "--model-path", settings.model_path] if settings.model_path else flags


def _router(settings: StackSettings, at: Addresses) -> Service:
    host = bracketed(settings.host)
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", host, "--port", _port(at.router)]
    command += ["--prometheus-host", host, "--prometheus-port", str(free_ports(1)[0]), "--log-level", "warn"]
    command += ["--pd-disaggregation", "--policy", "round_robin", "--prefill", at.prefill, str(at.bootstrap_port)]
    for url in at.decode.values():
        command += ["--decode", url]
    # a request that fails shall be seen to fail: here the router neither repeats it nor turns away from an instance
    command += ["--disable-retries", "--disable-circuit-breaker", "--worker-startup-check-interval", "1"]
    return Service("router", command, f"{at.router}/readiness")


def _port(url: str) -> str:
    return url.rpartition(":")[2]
