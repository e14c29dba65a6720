"""A small fleet of SGLang's own engines: with and without the plug-in on either side, in one cell."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests

from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.support.agents import AgentProcess
from tests.support.etcdctl import EtcdCtl

from .processes import Router, Server

ROOT = "/etcd_pd/engine"
#: Seconds until an agent's session has ended for certain: the default TTL, and what etcd adds.
SESSION_SECONDS = 7.0
#: By whether it has the plug-in. Ports are of the namespace that the tests have for themselves.
PREFILL_PORT = {True: 30001, False: 30002}
BOOTSTRAP_PORT = {True: 8998, False: 8999}
DECODE_PORT = {True: 31001, False: 31002}
SINGLE_PORT = 30000
METRICS_PORT = {"prefill": 29001, "decode": 29002}
#: Without the plug-in, all replicas of plain data parallelism register as rank 0 (SGLang 0.5.23), and decode hangs.
DP_SIZE = {True: 2, False: 1}
#: How long decode waits for a room that nobody registers; longer than any harm here, shorter than SGLang's 300.
ROOM_SECONDS = 60
#: Tokens that the prefills have place for; decode has more.
PREFILL_TOKENS = 1024


class Fleet:
    """etcd, an agent on each side, and engines, all running.

    Args:
        home: for logs.
        stack: ends all of it.
        times: a directory in which servers keep what calls took; empty: they do not.

    Attributes:
        home: where its servers log.
        prefills, decodes: by whether they have the plug-in.
        single: one server that does both, whose tokens are the right ones.
        agents: of those that have it, by side: "prefill" and "decode".
        pool: threads for a load.
        ctl: etcd's own view.
    """

    def __init__(self, home: Path, stack: ExitStack, times: str = "") -> None:
        self.home, self._stack, self._times = home, stack, times
        self.etcd = stack.enter_context(EmbeddedEtcd.start())
        self.ctl = EtcdCtl(self.etcd.endpoint)
        self.agents = {side: self._agent(side) for side in ("prefill", "decode")}
        self.pool = ThreadPoolExecutor(16, thread_name_prefix="load")
        stack.callback(self.pool.shutdown)
        self.prefills = {plugin: self._prefill(plugin) for plugin in (True, False)}
        self.decodes = {plugin: self._decode(plugin) for plugin in (True, False)}
        self.single = Server("single", home, SINGLE_PORT)
        self._routers: dict[tuple[bool, bool], Router] = {}

    def start(self) -> None:
        """Start all servers at once, and wait until they serve."""
        servers = [*self.prefills.values(), *self.decodes.values(), self.single]
        for server in servers:
            self._stack.callback(server.stop)
            server.start()
        for server in servers:
            server.await_healthy()

    def router(self, prefill: bool = True, decode: bool = True) -> Router:
        """One that sends to the prefill and the decode with, or without, the plug-in."""
        if (prefill, decode) not in self._routers:
            router = Router(PREFILL_PORT[prefill], DECODE_PORT[decode], BOOTSTRAP_PORT[prefill])
            self._stack.callback(router.close)
            self._routers[prefill, decode] = router
        return self._routers[prefill, decode]

    def bootstrap_port(self, plugin: bool = True) -> int:
        """The prefill's."""
        return BOOTSTRAP_PORT[plugin]

    def rooms(self) -> dict[int, str]:
        """Every room's key."""
        kvs = self.ctl.get_prefix(f"{ROOT}/v1/rooms/")
        return {int(kv.key.rpartition("/")[2]): kv.value for kv in kvs}

    @contextmanager
    def frozen_etcd(self) -> Iterator[None]:
        """etcd is stopped meanwhile."""
        os.kill(self.etcd.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.etcd.process.pid, signal.SIGCONT)

    def resolved(self) -> float:
        """How many waits decode's agent has answered with a rank."""
        text = requests.get(f"http://127.0.0.1:{METRICS_PORT['decode']}/metrics", timeout=10).text
        lines = [
            line for line in text.splitlines() if line.startswith("etcd_pd_resolutions_total") and "Resolved" in line
        ]
        return sum(float(line.split()[-1]) for line in lines)

    def _agent(self, side: str) -> AgentProcess:
        metrics = f"--metrics-listen=127.0.0.1:{METRICS_PORT[side]}"
        return self._stack.enter_context(AgentProcess(self.etcd.endpoint, ROOT, f"{side}-agent", metrics))

    def _prefill(self, plugin: bool) -> Server:
        dp_size = DP_SIZE[plugin] if not self._times else DP_SIZE[True]  # SGLang registers only where there are several
        with_plugin = prefill_environment(self.agents["prefill"], "prefill-0", BOOTSTRAP_PORT[True])
        environment = {**(with_plugin if plugin else {}), "ENGINE_TIMES": self._times}
        name = f"prefill-{'with' if plugin else 'without'}"
        return prefill_server(name, self.home, PREFILL_PORT[plugin], BOOTSTRAP_PORT[plugin], dp_size, environment)

    def _decode(self, plugin: bool) -> Server:
        with_plugin = decode_environment(self.agents["decode"], "decode-0")
        environment = {**(with_plugin if plugin else {}), "ENGINE_TIMES": self._times}
        return decode_server(f"decode-{'with' if plugin else 'without'}", self.home, DECODE_PORT[plugin], environment)


def prefill_environment(agent: AgentProcess, instance: str, bootstrap_port: int) -> dict[str, str]:
    """A prefill that has the plug-in."""
    return {
        "ETCD_PD_SOCKET": agent.socket_path,
        "ETCD_PD_INSTANCE": instance,
        "ETCD_PD_ADDRESSES": f"127.0.0.1:{bootstrap_port}",
    }


def decode_environment(agent: AgentProcess, instance: str) -> dict[str, str]:
    """A decode that has it."""
    return {
        "ETCD_PD_SOCKET": agent.socket_path,
        "ETCD_PD_INSTANCE": instance,
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": str(ROOM_SECONDS),
    }


def prefill_server(
    name: str, home: Path, port: int, bootstrap_port: int, dp_size: int, environment: Mapping[str, str]
) -> Server:
    """A prefill whose ranks take requests in turn."""
    return Server(
        name,
        home,
        port,
        *("--disaggregation-mode", "prefill", "--disaggregation-transfer-backend", "mooncake"),
        *("--disaggregation-bootstrap-port", str(bootstrap_port)),
        *("--dp-size", str(dp_size), "--load-balance-method", "round_robin", "--disable-radix-cache"),
        *("--max-total-tokens", str(PREFILL_TOKENS)),
        environment=environment,
    )


def decode_server(name: str, home: Path, port: int, environment: Mapping[str, str]) -> Server:
    """A decode."""
    return Server(
        name,
        home,
        port,
        *("--disaggregation-mode", "decode", "--disaggregation-transfer-backend", "mooncake"),
        *("--disaggregation-decode-retraction-backup", "cpu_tensor"),
        environment=environment,
    )
