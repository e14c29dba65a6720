"""All systems side by side on one machine, and one run of one of them at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from . import harness
from .agents import AgentProcess
from .harness import SGLANG_PYTHON, Worker
from .loops import HOLD_SECONDS

FIRST_ROOM = 10**18
#: Rooms of one run are told from those of another by their number.
ROOMS_A_RUN = 10**7
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
SGLANG_SESSION = Case("SGLang, session reused, polls each 1 ms", "sglang", 1.0, session=True)
FLOOR = Case("raw etcd", "floor")


@dataclass(frozen=True)
class Side:
    """The processes of one system.

    Attributes:
        writer: the prefill engine.
        reader: the decode engine.
        service: process ids of what stands between them, by name.
    """

    writer: Worker
    reader: Worker
    service: dict[str, int]

    def used(self) -> dict[str, float]:
        """CPU seconds of the service so far, by name."""
        return {name: harness.cpu_seconds([pid]) for name, pid in self.service.items()}


class Rig:
    """Runs cases, one at a time. Made by :func:`rig`."""

    def __init__(self, sides: dict[str, Side]) -> None:
        self._sides = sides
        self._first = itertools.count(FIRST_ROOM, ROOMS_A_RUN)

    def at_rate(self, case: Case, rate: float, seconds: float, spins: tuple[bool, bool]) -> Message:
        """One run at a rate; ``spins`` says which interpreters do, prefill's and decode's.

        Returns:
            ``wait_ms`` (from register() to found, a room each), ``acknowledged_ms``, ``wall_us``, ``cpu_us``,
            ``look_us``, ``missing``, ``reached`` (registrations a second) and ``cpu_us_per_room`` by part.
        """
        side = self._sides[case.system]
        message = {"first": next(self._first), "count": int(rate * seconds), "rate": rate, "session": case.session}
        message |= {"look_ms": case.look_ms, "nap_ms": case.look_ms, "start": time.monotonic() + HEAD_START}
        # a floor's processes must not hold a lock while they work: others spin beside them
        with harness.spinners(sum(spins) if case.system == "floor" else 0):
            before = side.used()
            side.reader.say({**message, "do": "read_at_rate", "spin": spins[1]})
            side.writer.say({**message, "do": "write_at_rate", "spin": spins[0]})
            written, read = side.writer.hear(), side.reader.hear()
            used = {name: seconds - before[name] for name, seconds in side.used().items()}
        return _measured(message["count"], written, read, used)

    def flat_out(self, case: Case, count: int, window: int, *, wanted: bool, release: bool = False) -> Message:
        """One run as fast as registrations are acknowledged, one writer; ``wanted``: a reader wants every room.

        Returns:
            ``rooms_per_second`` and ``cpu_us_per_room`` by part.
        """
        side = self._sides[case.system]
        message = {"first": next(self._first), "count": count, "window": window, "session": case.session, "limit": 60}
        message |= {"look_ms": case.look_ms, "nap_ms": case.look_ms, "start": time.monotonic() + HEAD_START}
        before = side.used()
        if wanted:
            side.reader.say({**message, "do": "read_flat_out"})
        side.writer.say({**message, "do": "write_flat_out", "release": release})
        written = side.writer.hear()
        read = side.reader.hear() if wanted else {"process_cpu_seconds": 0.0, "ended": written["ended"]}
        used = {name: used - before[name] for name, used in side.used().items()}
        seconds = max(written["ended"], read["ended"]) - written["began"]
        return {"rooms_per_second": count / seconds, "cpu_us_per_room": _cpu(count, written, read, used)}


def _cpu(count: int, written: Message, read: Message, service: dict[str, float]) -> dict[str, float]:
    engines = {"prefill engine": written["process_cpu_seconds"], "decode engine": read["process_cpu_seconds"]}
    parts = {**engines, **service}
    return {**{name: used / count * 1e6 for name, used in parts.items()}, "all": sum(parts.values()) / count * 1e6}


def _measured(count: int, written: Message, read: Message, service: dict[str, float]) -> Message:
    sent, found, told = written["sent_at"], read["resolved_at"], written["acknowledged_at"]
    return {
        "wait_ms": [(at - begun) * 1e3 for begun, at in zip(sent, found, strict=True) if at is not None],
        # a system that never says so has acknowledged a room when register() returns
        "acknowledged_ms": [(at - begun) * 1e3 for begun, at in zip(sent, told, strict=True) if at is not None]
        or [wall / 1e3 for wall in written["wall_us"]],
        "wall_us": written["wall_us"],
        "cpu_us": written["cpu_us"],
        "look_us": read["look_us"],
        "missing": found.count(None),
        "reached": (count - 1) / (sent[-1] - sent[0]),
        "cpu_us_per_room": _cpu(count, written, read, service),
    }


@contextmanager
def rig(systems: Sequence[str], agent_flags: Sequence[str] = ()) -> Iterator[Rig]:
    """Start what the systems need: one etcd on disk, two agents, SGLang's server, and two engines each."""
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        if {"etcd_pd", "floor"} & set(systems):
            etcd = stack.enter_context(harness.etcd_on_disk())
            where = {"endpoints": [etcd.endpoint]}
        if "etcd_pd" in systems:
            near, far = (
                stack.enter_context(AgentProcess(etcd.endpoint, name, agent_flags)) for name in ("prefill", "decode")
            )
            writer, reader = engines(stack, "etcd_pd", {"socket": near.socket_path}, {"socket": far.socket_path})
            sides["etcd_pd"] = Side(
                writer, reader, {"etcd": etcd.process.pid, "prefill agent": near.pid, "decode agent": far.pid}
            )
        if "floor" in systems:
            sides["floor"] = Side(*engines(stack, "floor", where, where), {"etcd": etcd.process.pid})
        if "sglang" in systems:
            sides["sglang"] = sglang(stack)
        yield Rig(sides)


def engines(stack: ExitStack, system: str, near: Message, far: Message) -> tuple[Worker, Worker]:
    """A prefill and a decode engine of a system, ready."""
    python = SGLANG_PYTHON if system == "sglang" else None
    both = [
        stack.enter_context(Worker("benchmarks.engine", {"system": system, "role": role, **config}, python))
        for role, config in (("write", near), ("read", far))
    ]
    for worker in both:
        worker.hear()
    return both[0], both[1]


def sglang(stack: ExitStack) -> Side:
    """SGLang's bootstrap server and two engines of it."""
    server = stack.enter_context(Worker("benchmarks.engine", {"system": "sglang", "role": "serve"}, SGLANG_PYTHON))
    server.hear()
    server.say({})
    address = {"address": f"127.0.0.1:{server.hear()['port']}"}
    return Side(*engines(stack, "sglang", address, address), {"server": server.pid})


def settle() -> None:
    """Let what a run left behind end: rooms that are still held, and sockets that close."""
    time.sleep(HOLD_SECONDS / 2)
