"""A small fleet to do harm to: agents, prefill ranks and decodes, with a witness beside etcd."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from etcd_pd.reference.local.probe import agent_answers
from etcd_pd.reference.local.process import Process
from etcd_pd.wire.values import RoomValue
from tests.support.etcdctl import EtcdCtl
from tests.support.proxy import Proxies, Proxy
from tests.support.waiting import wait_until

from . import auditor
from .history import Event, Recorder, read
from .witness import Witness
from .workload import Engine, Timetable

REPOSITORY = Path(__file__).parents[2]
AGENTS = ("a0", "a1", "a2")
#: The agent of each decode; one that serves prefill engines alone watches no rooms.
DECODES = ("a2", "a1")
RATE = 300.0
#: Keys written at once: etcd takes 128 by default.
BATCH = 100


@dataclass(frozen=True)
class Shape:
    """The prefill instance, and what is in its cell besides.

    Attributes:
        places: the agent of each process: of a rank's first process, its second, the next rank's first.
        tp: processes of each rank.
        policy: how a room's rank is chosen.
        crowd: keys of another instance's rooms.
    """

    places: tuple[str, ...] = ("a0", "a0", "a1", "a1")
    tp: int = 1
    policy: str = "round_robin"
    crowd: int = 0

    @property
    def ranks(self) -> int:
        """How many there are."""
        return len(self.places) // self.tp


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
        shape: of the fleet.
        user, password: of the agents, where etcd has users; its root has the same password.

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
        shape: Shape = Shape(),
        user: str = "",
        password: str = "",
    ) -> None:
        self.directory, self.endpoints, self.root, self.shape = directory, list(endpoints), root, shape
        self._user, self._password = user, password
        start = time.monotonic() + 4.0
        self.timetable = Timetable(seed, start, rate, shape.ranks, len(DECODES), timeout, shape.tp, shape.policy)
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
        for name in AGENTS:
            self.proxies[name] = [hub.add(endpoint) for endpoint in self.endpoints] if self._proxied else []
        crowd(self.ctl, self.root, self.shape.crowd)
        if self._recorded:
            self.new_witness(self.endpoints)
        for name in AGENTS:
            self.start_agent(name)
        for name in AGENTS:
            self.wait_agent(name)
        for number, agent in enumerate(self.shape.places):
            self.start_engine("prefill", *divmod(number, self.shape.tp), agent)
        for index, agent in enumerate(DECODES):
            self.start_engine("decode", index, 0, agent)

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
            if self.connect(endpoint, 1.0).healthy():
                return self.connect(endpoint, 15.0)
        raise AssertionError("no member of etcd is healthy")

    def connect(self, endpoint: str, timeout: float = 5.0) -> EtcdCtl:
        """An independent client of a member."""
        return EtcdCtl(endpoint, timeout, user="root" if self._user else "", password=self._password)

    @property
    def readers(self) -> list[str]:
        """Agents that watch rooms; the others serve prefill engines alone."""
        return [name for name in AGENTS if name in DECODES]

    def ranks(self, agent: str | None = None) -> list[str]:
        """The engines that are prefill ranks; those of an agent."""
        numbers = [number for number, place in enumerate(self.shape.places) if agent in (None, place)]
        return [self._rank_name(*divmod(number, self.shape.tp)) for number in numbers]

    def _rank_name(self, dp_rank: int, tp_rank: int) -> str:
        return f"r{dp_rank}.{tp_rank}" if self.shape.tp > 1 else f"r{dp_rank}"

    def socket_path(self, agent: str) -> str:
        """Where an agent listens."""
        return str(self.directory / f"{agent}.sock")

    def start_agent(self, name: str) -> None:
        """Start an agent, or start it again."""
        endpoints = [proxy.endpoint for proxy in self.proxies[name]] or self.endpoints
        number = AGENTS.index(name)
        endpoints = endpoints[number:] + endpoints[:number]  # as a deployment would, not all on the same member
        command = [sys.executable, "-m", "etcd_pd", "agent", "--etcd", ",".join(endpoints), "--root", self.root]
        command += ["--socket", self.socket_path(name), "--agent-id", name, *self._agent_flags]
        if self._user:
            secret = self.directory / "password"
            secret.write_text(self._password)
            command += ["--etcd-username", self._user, "--etcd-password-file", str(secret)]
        if name not in self.readers:
            command.append("--prefill-only")
        self.agents[name] = Process(name, command, self.directory / f"{name}.log")

    def wait_agent(self, name: str) -> None:
        """Wait until an agent takes connections."""
        self.agents[name].wait_until(lambda: agent_answers(self.socket_path(name)), timeout=20.0)

    def start_engine(self, role: str, index: int, tp_rank: int, agent: str) -> None:
        """Start an engine process."""
        path = self.socket_path(agent)
        name = f"d{index}" if role == "decode" else self._rank_name(index, tp_rank)
        where = path, str(self.directory)
        engine = Engine(role, index, name, *where, self.timetable, "launch-0", self._recorded, tp_rank=tp_rank)
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
        witness = Witness(endpoints, self.root, record, self.shape.tp, self.connect)
        self.witness = self._witness_stack.enter_context(witness)

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
                self.connect(endpoint, 1.0).revision()
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


def crowd(ctl: EtcdCtl, root: str, keys: int) -> None:
    """Write rooms of an instance that nobody asks for."""
    value = RoomValue(0, 1).to_json().decode()
    for first in range(0, keys, BATCH):
        rooms = range(first, min(first + BATCH, keys))
        ctl.put_all({f"{root}/v1/rooms/crowd/{room}": value for room in rooms})
