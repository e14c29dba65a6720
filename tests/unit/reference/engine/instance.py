"""Engine instances as processes, with the stand-in registry.

``python -m tests.unit.reference.engine.instance ROLE SETTINGS``
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from etcd_pd import EtcdPDError
from etcd_pd.reference.engine.launch import run_decode, run_prefill
from etcd_pd.reference.engine.settings import DecodeSettings, PrefillSettings
from tests.support.children import end
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tests.unit.reference.engine.registry_fake import connect


class InstanceProcess:
    """One instance; use it as a context manager.

    Args:
        role: ``prefill`` or ``decode``.
        directory: for the registry, the log and temporary files.
        settings: those that are not the default.
    """

    def __init__(self, role: str, directory: Path, **settings: Any) -> None:
        self.role = role
        self.directory = directory
        registry = directory / "registry"
        registry.mkdir(exist_ok=True)
        self.port = settings.setdefault("port", free_port())
        if role == "prefill":
            settings.setdefault("bootstrap_port", free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"instance": f"{role}-{self.port}", "socket_path": str(registry), **settings}
        self.log_path = directory / f"{role}-{self.port}.log"
        self.temporary = Path(tempfile.mkdtemp(dir=directory.parent))  # a socket's path has 107 characters at most

    @property
    def address(self) -> dict[str, Any]:
        """How requests name a prefill instance."""
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.settings["bootstrap_port"]}

    def __enter__(self) -> InstanceProcess:
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop(signal.SIGTERM)

    def start(self) -> None:
        """Start it, without waiting."""
        command = [sys.executable, "-m", "tests.unit.reference.engine.instance", self.role, json.dumps(self.settings)]
        environ = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)

    def wait_ready(self) -> None:
        """Wait until it takes requests."""
        wait_until(self._answers, f"an answer of {self.role}; its log: {self.log_path}", timeout=50, every=0.1)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait; the exit status."""
        return end(self.process, number)

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.log_path.read_text()

    def info(self) -> dict[str, Any]:
        """Its /server_info."""
        with urlopen(f"{self.url}/server_info", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def rank_pids(self) -> list[int]:
        """Processes of its ranks."""
        return [rank["pid"] for rank in self.info()["etcd_pd"]["ranks"]]

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            with urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False


def main() -> None:
    """Run an instance until it is told to stop."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    role, settings = sys.argv[1], json.loads(sys.argv[2])
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    try:
        if role == "prefill":
            run_prefill(PrefillSettings(**settings), connect)
        else:
            run_decode(DecodeSettings(**settings), connect)
    except EtcdPDError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
