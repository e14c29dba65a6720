"""All systems side by side on one machine, and one run of one of them at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etcd_pd.reference.local.process import free_ports

from . import harness
from .agents import AgentProcess
from .harness import SGLANG_PYTHON, Worker
from .loops import HOLD_SECONDS
from .rounds import cpu_by_part, measured

FIRST_ROOM = 10**18
#: Rooms of one run are told from those of another by their number.
ROOMS_A_RUN = 10**7
#: What each system does before it is measured, so that it is not its first second that is.
WARM_UP_ROOMS, WARM_UP_RATE = 150, 150
#: More of an agent's command line, as the chart has it.
AGENT_FLAGS = {"prefill": ["--prefill-only"], "decode": []}
#: From telling the engines to the first room, seconds.
HEAD_START = 0.3

Message = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A system, and how it is driven.

    Attributes:
        name: what rows and plots call it.
        system: ``etcd_pd``, ``sglang`` or ``floor``.
        look_ms: how often the decode engine looks; 0: in every turn of its loop.
        session: SGLang's registration reuses its connection.
    """

    name: str
    system: str
    look_ms: float = 0.0
    session: bool = False


OURS = Case("etcd_pd", "etcd_pd")
OURS_1MS = Case("etcd_pd, looks each 1 ms", "etcd_pd", 1.0)
OURS_5MS = Case("etcd_pd, looks each 5 ms", "etcd_pd", 5.0)
SGLANG_0MS = Case("SGLang, polls without a pause", "sglang")
SGLANG_1MS = Case("SGLang, polls each 1 ms", "sglang", 1.0)
SGLANG_5MS = Case("SGLang, polls each 5 ms", "sglang", 5.0)
SGLANG_SESSION_5MS = Case("SGLang, session reused, polls each 5 ms", "sglang", 5.0, session=True)
SGLANG_SESSION = Case("SGLang, session reused, polls each 1 ms", "sglang", 1.0, session=True)
FLOOR = Case("raw etcd", "floor")


@dataclass(frozen=True)
class Side:
    """The processes of one system.

    Attributes:
        writers: the prefill engines.
        reader: the decode engine.
        service: process ids of what stands between them, by name.
    """

    writers: tuple[Worker, ...]
    reader: Worker
    service: dict[str, tuple[int, ...]]

    def used(self) -> dict[str, float]:
        """CPU seconds of the service so far, by name."""
        return {name: harness.cpu_seconds(pids) for name, pids in self.service.items()}

    def used_since(self, before: dict[str, float]) -> dict[str, float]:
        """The same since then."""
        return {name: seconds - before[name] for name, seconds in self.used().items()}


class Rig:
    """Runs cases, one at a time. Made by :func:`rig`."""

    def __init__(self, sides: dict[str, Side]) -> None:
        self._sides = sides
        self._first = itertools.count(FIRST_ROOM, ROOMS_A_RUN)

    def warm_up(self) -> None:
        """All systems at once, unmeasured: first calls load code and open connections."""
        told: list[Worker] = []
        for system, side in self._sides.items():
            message = self._message(Case(system, system, 1.0), WARM_UP_ROOMS) | {"rate": WARM_UP_RATE, "spin": False}
            side.reader.say({**message, "do": "read_at_rate"})
            side.writers[0].say({**message, "do": "write_at_rate"})
            told += [side.reader, side.writers[0]]
        for worker in told:
            worker.hear()

    def service(self, system: str) -> dict[str, tuple[int, ...]]:
        """Process ids of what stands between a system's engines, by name."""
        return dict(self._sides[system].service)

    def at_rate(self, case: Case, rate: float, seconds: float, spins: tuple[bool, bool]) -> Message:
        """One run at a rate; ``spins`` says which interpreters do, prefill's and decode's.

        Returns:
            A room each: ``late_ms`` (from when it was due to register()), ``wait_ms`` (from then until it was found),
            ``due_ms`` (both together), ``acknowledged_ms``, ``wall_us``, ``cpu_us``, ``clock_us``, ``look_us``. And
            ``missing``, ``reached`` (registrations a second from when the first was due), ``cpu_us_per_room`` by part.
        """
        side, count = self._sides[case.system], int(rate * seconds)
        message = self._message(case, count) | {"rate": rate}
        # a floor's processes must not hold a lock while they work: others spin beside them
        with harness.spinners(sum(spins) if case.system == "floor" else 0):
            before = side.used()
            side.reader.say({**message, "do": "read_at_rate", "spin": spins[1]})
            side.writers[0].say({**message, "do": "write_at_rate", "spin": spins[0]})
            written, read = side.writers[0].hear(), side.reader.hear()
            used = side.used_since(before)
        return measured(message, written, read, used)

    def flat_out(self, case: Case, count: int, window: int, *, wanted: bool, release: bool = False) -> Message:
        """One run as fast as registrations are acknowledged, all prefill engines at once.

        Args:
            count: rooms, divided among the prefill engines.
            window: registrations in flight, of each.
            wanted: the decode engine wants every room, and the run ends when it has them.
            release: rooms are released as soon as they are acknowledged.

        Returns:
            ``rooms``, ``rooms_per_second`` and ``cpu_us_per_room`` by part.
        """
        side = self._sides[case.system]
        share = count // len(side.writers)
        message = self._message(case, share) | {"window": window, "limit": 60.0}
        before = side.used()
        if wanted:
            side.reader.say({**message, "do": "read_flat_out"})
        for number, writer in enumerate(side.writers):
            first = message["first"] + number * share
            writer.say({**message, "first": first, "do": "write_flat_out", "release": release})
        written = [writer.hear() for writer in side.writers]
        nobody = {"process_cpu_seconds": 0.0, "ended": 0.0, "count": count}
        read = side.reader.hear() if wanted else nobody
        used = side.used_since(before)
        if read["count"] < count:
            raise RuntimeError(f"{case.name}: {count - read['count']} rooms were not resolved")
        ended = max(read["ended"], *(each["ended"] for each in written))
        total = {"process_cpu_seconds": sum(each["process_cpu_seconds"] for each in written)}
        seconds = ended - min(each["began"] for each in written)
        return {
            "rooms": count,
            "rooms_per_second": count / seconds,
            "cpu_us_per_room": cpu_by_part(count, total, read, used),
        }

    def _message(self, case: Case, count: int) -> Message:
        look = {"look_ms": case.look_ms, "nap_ms": case.look_ms, "session": case.session}
        return {"first": next(self._first), "count": count, "start": time.monotonic() + HEAD_START, **look}


@dataclass(frozen=True)
class Where:
    """An etcd to measure on.

    Attributes:
        endpoints: of its members.
        pids: of its processes, by name.
        papers: directory with a directory of certificate, key and authority for each user; None: no TLS.
    """

    endpoints: tuple[str, ...]
    pids: dict[str, tuple[int, ...]]
    papers: Path | None = None

    def flags(self, user: str) -> list[str]:
        """What an agent that is this user is told."""
        files = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"} if self.papers else {}
        return [f"--etcd-{kind}-file={self.papers}/{user}/{name}" for kind, name in files.items()]

    def config(self) -> Message:
        """What the floor's processes are told; they write beside the cell, as root."""
        return {"endpoints": self.endpoints, "papers": str(self.papers / "root") if self.papers else ""}


@contextmanager
def rig(
    systems: Sequence[str],
    where: Where | None = None,
    *,
    prefill_agents: int = 1,
    decode_agents: int = 1,
    profiles: Mapping[str, Path] | None = None,
) -> Iterator[Rig]:
    """Start what the systems need: etcd, agents, SGLang's server, and engines.

    Args:
        systems: of ``etcd_pd``, ``sglang``, ``floor``.
        where: an etcd that runs; None: one of its own, on disk.
        prefill_agents: each with a prefill engine of its own.
        decode_agents: the one decode engine divides its rooms among them.
        profiles: files for the profiles of the ``prefill`` and ``decode`` agents.
    """
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        starting: list[Worker] = []
        if "sglang" in systems:  # first: its imports take seconds
            sides["sglang"] = _sglang(stack, starting)
        if where is None and {"etcd_pd", "floor"} & set(systems):
            etcd = stack.enter_context(harness.etcd_on_disk())
            where = Where((etcd.endpoint,), {"etcd": (etcd.process.pid,)})
        if where and "etcd_pd" in systems:
            agents = _agents(stack, where, {"prefill": prefill_agents, "decode": decode_agents}, profiles or {})
            sides["etcd_pd"] = _ours(stack, where, agents, starting)
        if where and "floor" in systems:
            writers, reader = _engines(stack, "floor", [where.config()], where.config(), starting)
            sides["floor"] = Side(writers, reader, dict(where.pids))
        for worker in starting:
            worker.hear()
        made = Rig(sides)
        made.warm_up()
        yield made


def _agents(
    stack: ExitStack, where: Where, counts: Mapping[str, int], profiles: Mapping[str, Path]
) -> dict[str, list[AgentProcess]]:
    """So many agents of each role, started at once."""
    endpoints = ",".join(where.endpoints)
    made = {
        role: [
            AgentProcess(endpoints, f"{role}-{number}", [*where.flags(role), *AGENT_FLAGS[role]], profiles.get(role))
            for number in range(count)
        ]
        for role, count in counts.items()
    }
    return {role: [stack.enter_context(agent) for agent in agents] for role, agents in made.items()}


def _ours(stack: ExitStack, where: Where, agents: Mapping[str, list[AgentProcess]], starting: list[Worker]) -> Side:
    near = [
        {"socket": agent.socket_path, "instance": f"prefill-{number}"} for number, agent in enumerate(agents["prefill"])
    ]
    far = {"sockets": [agent.socket_path for agent in agents["decode"]]}
    writers, reader = _engines(stack, "etcd_pd", near, far, starting)
    pids = {f"{role} agents": tuple(agent.pid for agent in made) for role, made in agents.items()}
    return Side(writers, reader, where.pids | pids)


def _engines(
    stack: ExitStack, system: str, near: Sequence[Message], far: Message, starting: list[Worker]
) -> tuple[tuple[Worker, ...], Worker]:
    """Prefill engines and a decode engine of a system; they are on their way."""
    python = SGLANG_PYTHON if system == "sglang" else None
    parts = [*(("write", config) for config in near), ("read", far)]
    made = [
        stack.enter_context(Worker("benchmarks.engine", {"system": system, "role": role, **config}, python))
        for role, config in parts
    ]
    starting += made
    return tuple(made[:-1]), made[-1]


def _sglang(stack: ExitStack, starting: list[Worker]) -> Side:
    (port,) = free_ports(1)
    config = {"system": "sglang", "role": "serve", "port": port}
    server = stack.enter_context(Worker("benchmarks.engine", config, SGLANG_PYTHON))
    starting.append(server)
    address = {"address": f"127.0.0.1:{port}"}
    writers, reader = _engines(stack, "sglang", [address], address, starting)
    return Side(writers, reader, {"server": (server.pid,)})


def settle() -> None:
    """Let what a run left behind end: rooms that are still held, and sockets that close."""
    time.sleep(HOLD_SECONDS / 2)
