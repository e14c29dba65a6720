"""A stand-in for the registry's client, for engine tests without agent and etcd: files in a directory.

It has the methods that the engine calls and no more, and it is never kinder than the real one: register() and want()
answer later, through poll(). One file per rank key and one per room; a rank key names the process that owns it, and a
rank whose process is gone is lost.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from etcd_pd import (
    Announced,
    Assignment,
    Client,
    Described,
    Ended,
    InstanceInfo,
    PrefillInstance,
    PrefillLost,
    Rank,
    RankEndpoint,
    Refused,
    Registered,
    Rejected,
    Resolved,
    ResolveError,
    RoomConflict,
    RoomFailed,
    RoomTimeout,
    Topology,
)
from etcd_pd.errors import InstanceConflict

#: The lease that every fake room hangs on.
LEASE_ID = 0x5EED


def connect(directory: str) -> Client:
    """What an engine is given in place of ``etcd_pd.connect``; the "socket path" is a directory."""
    return cast(Client, FakeClient(Path(directory)))


class FakeClient:
    """One process's client."""

    def __init__(self, directory: Path) -> None:
        self.prefill = FakePrefill(directory)
        self.decode = FakeDecode(directory)

    state = "connected"

    def fileno(self) -> int:
        """No descriptor: loops poll every now and then."""
        return -1

    def close(self) -> None:
        """The rank's key goes with the connection."""
        self.prefill.close()


@dataclass
class FakePrefill:
    """The prefill side."""

    directory: Path
    key: Path | None = None
    epoch: int = 0
    instance: str = ""
    dp_rank: int = 0
    held: set[int] = field(default_factory=set)
    events: list[Any] = field(default_factory=list)

    def announce(self, instance: str, *, rank: Rank, topology: Topology, launch_id: str, **more: Any) -> None:
        """Write the rank's key, unless another launch has the instance."""
        self.instance, self.dp_rank, self.epoch = instance, rank.dp, time.time_ns()
        for other in self.directory.glob(f"rank-{instance}-*"):
            if json.loads(other.read_text())["launch_id"] != launch_id:
                self.events.append(Refused(InstanceConflict(instance, "another launch")))
                return
        self.key = self.directory / f"rank-{instance}-{rank.dp}"
        value = {**more, "launch_id": launch_id, "dp": topology.dp, "pid": os.getpid(), "epoch": self.epoch}
        _write(self.key, {**value, "instance": instance, "dp_rank": rank.dp})
        self.events.append(Announced(instance, "incarnation", self.epoch))

    def register(self, room: int) -> None:
        """Write the room's key, unless there is one."""
        value = {"dp_rank": self.dp_rank, "epoch": self.epoch, "revision": time.time_ns()}
        if _create(self.directory / f"room-{self.instance}-{room}", value):
            self.held.add(room)
            self.events.append(Registered(room, value["revision"], LEASE_ID, self.epoch))
        else:
            self.events.append(Rejected(room, RoomConflict(room, "somebody")))

    def release(self, room: int) -> None:
        """Delete the room's key."""
        self.held.discard(room)
        (self.directory / f"room-{self.instance}-{room}").unlink(missing_ok=True)

    def fail(self, room: int, reason: str) -> None:
        """Say that the room will not come."""
        self.held.discard(room)
        _write(self.directory / f"room-{self.instance}-{room}", {"failed": reason})

    def drain(self) -> None:
        """Nothing to do."""

    def poll(self) -> list[Any]:
        """What has happened."""
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        """Take the rank's key away."""
        if self.key is not None:
            self.key.unlink(missing_ok=True)


@dataclass
class FakeDecode:
    """The decode side."""

    directory: Path
    wants: dict[tuple[str, int], tuple[float, int | None]] = field(default_factory=dict)
    found: dict[tuple[str, int], Assignment] = field(default_factory=dict)
    followed: list[str] = field(default_factory=list)

    def announce(self, instance: str, *, address: str = "") -> None:
        """Nobody looks."""

    def want(self, instance: str, room: int, *, timeout: float = 300.0, dp_rank: int | None = None) -> None:
        """Ask for a room."""
        self.wants[instance, room] = (time.monotonic() + timeout, dp_rank)

    def done(self, instance: str, room: int) -> None:
        """Forget a room."""
        self.wants.pop((instance, room), None)
        self.found.pop((instance, room), None)

    def instance(self, name: str) -> PrefillInstance | None:
        """The instance of that id or address, with the ranks whose processes live."""
        keys = [json.loads(path.read_text()) for path in sorted(self.directory.glob("rank-*"))]
        keys = [key for key in keys if name in (key["instance"], *key["addresses"])]
        if not keys:
            return None
        one = keys[0]
        info = InstanceInfo(
            "incarnation",
            one["launch_id"],
            tuple(one["addresses"]),
            Topology(dp=one["dp"]),
            one["policy"],
            one["fingerprint"],
        )
        ranks = [
            RankEndpoint(Rank(key["dp_rank"]), key["ip"], key["port"], epoch=key["epoch"])
            for key in keys
            if _lives(key["pid"])
        ]
        return PrefillInstance(one["instance"], info, tuple(ranks))

    def follow(self, name: str) -> None:
        """Ask what is known of an instance."""
        self.followed.append(name)

    def poll(self) -> list[Any]:
        """What has happened."""
        events: list[Any] = [Described(name, self.instance(name)) for name in self.followed]
        self.followed.clear()
        for (name, room), (deadline, named) in list(self.wants.items()):
            event = self._look(name, room, deadline, named)
            if event is not None:
                events.append(event)
        return events

    def _look(self, name: str, room: int, deadline: float, named: int | None) -> Resolved | Ended | None:
        instance = self.instance(name)
        if (name, room) in self.found:
            found = self.found[name, room]
            if instance is None or not any(rank.epoch == found.epoch for rank in instance.ranks):
                return self._end(name, room, PrefillLost(name, room, found.dp_rank, found.epoch))
            value = _read(self.directory / f"room-{instance.id}-{room}") or {}
            if "failed" in value:  # after it was resolved
                return self._end(name, room, RoomFailed(instance.id, room, value["failed"]))
            return None
        assignment = None if instance is None else self._resolve(instance, room, named)
        if isinstance(assignment, ResolveError):
            return self._end(name, room, assignment)
        if assignment is not None:
            self.found[name, room] = assignment
            return Resolved(assignment, name)
        if deadline < time.monotonic():
            return self._end(name, room, RoomTimeout(name, room))
        return None

    def _resolve(self, instance: PrefillInstance, room: int, named: int | None) -> Assignment | ResolveError | None:
        source, revision, lease_id = "registry", 1, 0
        if named is not None:
            dp_rank, source = named, "named"
        elif instance.info.topology.dp == 1:
            dp_rank, source = 0, "single-rank"
        elif instance.info.policy == "follow_bootstrap_room":
            dp_rank, source = room % instance.info.topology.dp, "follow-bootstrap-room"
        else:
            value = _read(self.directory / f"room-{instance.id}-{room}")
            if value is None:
                return None
            if "failed" in value:
                return RoomFailed(instance.id, room, value["failed"])
            dp_rank, revision, lease_id = value["dp_rank"], value["revision"], LEASE_ID
        alive = {endpoint.rank.dp: endpoint.epoch for endpoint in instance.ranks}
        if dp_rank not in alive:
            return PrefillLost(instance.id, room, dp_rank, 0)
        return Assignment(instance.id, room, dp_rank, alive[dp_rank], revision, lease_id, source)

    def _end(self, name: str, room: int, error: ResolveError) -> Ended:
        del self.wants[name, room]
        return Ended(error)


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(value, default=list))
    temporary.rename(path)


def _create(path: Path, value: dict[str, Any]) -> bool:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(value))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return value


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
