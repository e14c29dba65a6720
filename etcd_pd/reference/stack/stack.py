"""The local stack: etcd, an agent beside each engine instance, one prefill and some decode instances, the router."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import aiohttp

from ...config import option_name
from ...errors import ConfigError
from ..local.embedded import EmbeddedEtcd, find_etcd
from ..local.probe import agent_answers, http_ok
from ..local.process import Process, ProcessFailed, check_port, describe_status
from .etcd_gateway import Gateway
from .plan import Addresses, Service, choose_addresses, services
from .settings import StackSettings

#: How long one process may take to end before it is killed.
STOP_SECONDS = 15.0


class Stack:
    """Everything that one cell needs, as child processes of this one.

    Args:
        settings: what to start.
        waiting: called with the name of what is waited for; its context is left when that is ready.

    Attributes:
        run_dir: where the logs are.
        addresses: where everything is, once it was started.

    Raises:
        ConfigError: something is missing on this machine, or the router's port is taken.
    """

    addresses: Addresses

    def __init__(self, settings: StackSettings, waiting: Callable[[str], AbstractContextManager[None]]) -> None:
        _check_machine(settings)
        self.settings = settings
        self.run_dir = Path(settings.run_dir or tempfile.mkdtemp(prefix="etcd-pd-up-"))
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # apart from the logs: a Unix socket's path is short, and nobody else may look into its directory
        self._socket_dir = Path(tempfile.mkdtemp(prefix="etcd-pd-"))
        self._waiting = waiting
        self._embedded: EmbeddedEtcd | None = None
        self._processes: list[Process] = []

    def start(self) -> None:
        """Start everything, each stage when the one before is ready.

        Raises:
            ProcessFailed: a process ended, or was not ready in time.
        """
        self.addresses = choose_addresses(self.settings, self.settings.etcd or self._start_etcd(), self._socket_dir)
        for stage in services(self.settings, self.addresses):
            started = [self._start(service) for service in stage]
            for service, process in zip(stage, started, strict=True):
                with self._waiting(f"{service.name} at {service.answers_at}"):
                    process.wait_until(partial(_answers, service.answers_at), self.settings.startup_timeout_seconds)
        self._describe()

    @property
    def warning(self) -> str:
        """What a person should know of its etcd; mostly empty."""
        return self._embedded.warning if self._embedded else ""

    def take_failures(self) -> list[ProcessFailed]:
        """The processes that have ended by themselves since this was last asked."""
        ended = [process for process in self._processes if process.exit_status is not None]
        self._processes = [process for process in self._processes if process not in ended]
        # stop() also ends what such a process has left behind
        return [process.failure(f"ended with {describe_status(process.stop())}") for process in ended]

    def stop(self) -> list[str]:
        """End everything in the reverse order of its start; the keys that it has left behind in etcd."""
        etcd = self._embedded.process if self._embedded else None
        for process in reversed(self._processes):
            if process is not etcd:
                process.stop(STOP_SECONDS)
        left = self._keys_left()
        if self._embedded:
            self._embedded.stop()
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        return left

    def remove_logs(self) -> None:
        """Remove the run directory where it was a temporary one."""
        if not self.settings.run_dir:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def _start_etcd(self) -> list[str]:
        with self._waiting("etcd"):
            self._embedded = EmbeddedEtcd.start(log=self.run_dir / "etcd.log")
        self._processes.append(self._embedded.process)
        return [self._embedded.endpoint]

    def _start(self, service: Service) -> Process:
        process = Process(service.name, service.command, self.run_dir / f"{service.name}.log", _environ())
        self._processes.append(process)
        return process

    def _describe(self) -> None:
        """Write stack.json; it appears at once, when everything is ready."""
        processes = {process.name: process.pid for process in self._processes}
        draft = self.run_dir / "stack.json.draft"
        draft.write_text(json.dumps({**asdict(self.addresses), "processes": processes}, indent=2))
        draft.rename(self.run_dir / "stack.json")

    def _keys_left(self) -> list[str]:
        if not hasattr(self, "addresses"):
            return []
        names = {process.name for process in self._processes}
        prefix = f"{self.addresses.root}/v1/"

        async def list_keys() -> list[str]:
            async with Gateway(self.addresses.etcd[0]) as gateway:
                keys = [kv.key for kv in (await gateway.range(prefix)).kvs]
            # others may share the cell
            return [key for key in keys if key.removeprefix(prefix).split("/")[1] in names]

        try:
            return asyncio.run(list_keys())
        except (OSError, aiohttp.ClientError):
            return []  # etcd itself is gone


def _check_machine(settings: StackSettings) -> None:
    """Find out what is missing before anything is started."""
    if settings.port:
        check_port(settings.port)
    if not settings.etcd:
        find_etcd()
    if importlib.util.find_spec("sglang_router") is None:
        raise ConfigError("router", "not installed: pip install 'etcd-pd[router]'")


def _answers(at: str) -> bool:
    return http_ok(at) if at.startswith("http") else agent_answers(at)


def _environ() -> dict[str, str]:
    """What the stack's processes inherit: all but the stack's own settings, which mean something else to them."""
    own = {f"ETCD_PD_{option_name(setting).upper()}" for setting in fields(StackSettings)}
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    # nothing here is reached through a proxy, and no model comes from a hub
    return {**inherited, "NO_PROXY": "127.0.0.1,::1", "no_proxy": "127.0.0.1,::1", "HF_HUB_OFFLINE": "1"}
