"""A small fleet to do harm to: agents, prefill ranks and decodes, with a witness beside etcd."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from etcd_pd.reference.local.probe import agent_answers
from etcd_pd.reference.local.process import Process
from tests.support.etcdctl import EtcdCtl
from tests.support.proxy import Proxies, Proxy
from tests.support.waiting import wait_until

from . import auditor
from .history import Event, Recorder, read
from .witness import Witness
from .workload import Engine, Timetable

REPOSITORY = Path(__file__).parents[2]
#: Agents by name, with the ranks and decodes that each serves: one instance spans two nodes.
PLACES = {"a0": ((0, 1), ()), "a1": ((2, 3), (1,)), "a2": ((), (0,))}
RANKS, DECODES = 4, 2
RATE = 300.0


class Rig:
    """The fleet under load. Use it as a context manager; leaving it stops whatever still runs.

    Args:
        directory: for sockets, logs and histories.
        endpoints: etcd's members.
        root: the cell.
        seed: of the timetable.
        rate: rooms a second.
        timeout: how long a decode waits for a room: longer than any fault lasts, so that no wait may be lost to it.
        proxied: put a proxy between each agent and each member.
        agent_flags: more settings of the agents.
        recorded: keep a history; without one there is no verdict, and no disk fills up.

    Attributes:
        proxies: by agent, in the order of the members.
    """

    def __init__(
        self,
        directory: Path,
        endpoints: Sequence[str],
        root: str,
        seed: int,
        *,
        rate: float = RATE,
        timeout: float = 15.0,
        proxied: bool = False,
        agent_flags: Sequence[str] = (),
        recorded: bool = True,
    ) -> None:
        self.directory, self.endpoints, self.root = directory, list(endpoints), root
        self.timetable = Timetable(seed, time.monotonic() + 4.0, rate, RANKS, DECODES, timeout)
        self.proxies: dict[str, list[Proxy]] = {}
        self.engines: dict[str, Process] = {}
        self.agents: dict[str, Process] = {}
        self._proxied, self._agent_flags, self._recorded = proxied, list(agent_flags), recorded
        self._specs: dict[str, Engine] = {}
        self._starts = 0
        self._faults = 0
        self._stack = ExitStack()
        self._witness_stack = ExitStack()
        self._witnesses = 0

    def __enter__(self) -> Rig:
        try:
            self._start()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop_all()

    def _start(self) -> None:
        self.record = self._stack.enter_context(Recorder(self.directory / "nemesis.jsonl", "nemesis"))
        hub = self._stack.enter_context(Proxies())
        for name in PLACES:
            self.proxies[name] = [hub.add(endpoint) for endpoint in self.endpoints] if self._proxied else []
        if self._recorded:
            self.new_witness(self.endpoints)
        for name in PLACES:
            self.start_agent(name)
        for name in PLACES:
            self.wait_agent(name)
        for agent, (ranks, decodes) in PLACES.items():
            for index in ranks:
                self.start_engine(f"r{index}", "prefill", index, agent)
            for index in decodes:
                self.start_engine(f"d{index}", "decode", index, agent)

    def _stop_all(self) -> None:
        for process in (*self.engines.values(), *self.agents.values()):
            if process.exit_status is None:
                os.kill(process.pid, signal.SIGCONT)
                process.stop(timeout=5.0)
        self._witness_stack.close()
        self._stack.close()

    # --- parts

    @property
    def ctl(self) -> EtcdCtl:
        """An independent client of a member that answers; a busy machine may take its time over a large request."""
        for endpoint in self.endpoints:
            if EtcdCtl(endpoint, timeout=1.0).healthy():
                return EtcdCtl(endpoint, timeout=15.0)
        raise AssertionError("no member of etcd is healthy")

    @property
    def readers(self) -> list[str]:
        """Agents that watch rooms; the others serve prefill engines alone."""
        return [name for name, (_, decodes) in PLACES.items() if decodes]

    def socket_path(self, agent: str) -> str:
        """Where an agent listens."""
        return str(self.directory / f"{agent}.sock")

    def start_agent(self, name: str) -> None:
        """Start an agent, or start it again."""
        endpoints = [proxy.endpoint for proxy in self.proxies[name]] or self.endpoints
        number = list(PLACES).index(name)
        endpoints = endpoints[number:] + endpoints[:number]  # as a deployment would, not all on the same member
        command = [sys.executable, "-m", "etcd_pd", "agent", "--etcd", ",".join(endpoints), "--root", self.root]
        command += ["--socket", self.socket_path(name), "--agent-id", name, *self._agent_flags]
        if name not in self.readers:
            command.append("--prefill-only")
        self.agents[name] = Process(name, command, self.directory / f"{name}.log")

    def wait_agent(self, name: str) -> None:
        """Wait until an agent takes connections."""
        self.agents[name].wait_until(lambda: agent_answers(self.socket_path(name)), timeout=20.0)

    def start_engine(self, name: str, role: str, index: int, agent: str) -> None:
        """Start an engine process."""
        path = self.socket_path(agent)
        engine = Engine(role, index, name, path, str(self.directory), self.timetable, "launch-0", self._recorded)
        self._specs[name] = engine
        self._launch(name, engine)

    def restart_engine(self, name: str, launch_id: str | None = None) -> None:
        """Start an engine again, under another name in the history; another launch_id is another incarnation."""
        self._starts += 1
        engine = self._specs[name]
        self._specs[name] = engine = replace(engine, launch_id=launch_id or engine.launch_id)
        self._launch(name, replace(engine, name=f"{name}-{self._starts}"))

    def _launch(self, name: str, engine: Engine) -> None:
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.engines[name] = Process(name, engine.command(), self.directory / f"{name}.log", environ)

    def kill(self, process: Process, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to an agent or engine."""
        os.kill(process.pid, number)
        if number is signal.SIGKILL:
            wait_until(lambda: process.exit_status is not None, f"{process.name} is gone")

    def new_witness(self, endpoints: Sequence[str]) -> None:
        """Watch etcd; again, where another history of it has begun."""
        self._witnesses += 1
        path = self.directory / f"witness-{self._witnesses}.jsonl"
        record = self._witness_stack.enter_context(Recorder(path, "witness"))
        self.witness = self._witness_stack.enter_context(Witness(endpoints, self.root, record))

    def end_witness(self) -> None:
        """Watch no longer: this history of etcd is over. Record ``void`` when nothing of it is left."""
        self._witness_stack.close()

    # --- a run

    def live(self, seconds: float) -> None:
        """Let the load run. Everything that is not meant to be dead must be alive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))
            for process in self.agents.values():
                if process.exit_status not in (None, -signal.SIGKILL):
                    process.check()

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Do harm inside the block and undo it at its end; then every view must become equal to etcd."""
        self._faults += 1
        self.record("fault", name=name)
        yield
        wait_until(self._etcd_is_well, f"etcd is well after {name}", 30.0)
        self.record("healed", name=name, number=self._faults, agents=self.readers)
        auditor.catch_up(self, self._faults)
        self.record.flush()

    def _etcd_is_well(self) -> bool:
        try:
            for endpoint in self.endpoints:
                EtcdCtl(endpoint, timeout=1.0).revision()
        except Exception:
            return False
        return True

    def finish(self) -> list[Event]:
        """End the load, wait until every wait has ended, compare every view with etcd; the whole history."""
        last = self.timetable.number_at(time.monotonic()) + int(self.timetable.rate * 0.5)
        part = self.directory / "last.part"
        part.write_text(str(last))
        part.rename(self.directory / "last")
        decodes = [process for name, process in self.engines.items() if name.startswith("d")]
        deadline = self.timetable.timeout + 10.0
        wait_until(lambda: all(d.exit_status is not None for d in decodes), "every wait has ended", deadline)
        for process in self.engines.values():
            if process.exit_status not in (None, 0):
                raise process.failure("ended by itself")
        auditor.compare(self)
        self.record.flush()
        wait_until(lambda: self.witness.revision >= self.last_revision(), "the witness has seen everything")
        self._stop_all()
        return read(sorted(self.directory.glob("*.jsonl")))

    def last_revision(self) -> int:
        """The last revision at which something in the cell was written that still stands."""
        return max((kv.mod_revision for kv in self.ctl.get_prefix(f"{self.root}/v1/")), default=0)
