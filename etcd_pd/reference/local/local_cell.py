"""The cell that a user runs on this machine: whoever starts it leaves its addresses where the other commands look.

They stand in a file of mode 0600 beside the agent's default socket. Its maker holds a lock on it, which the kernel
takes away with the process: a file that nobody locks was left behind.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from ...config import AgentSettings, default_socket_path
from ...errors import ConfigError
from ...wire.private import check_way, open_private

_FIELD = "local cell"


@dataclass(frozen=True)
class LocalCell:
    """Where a cell on this machine is.

    Attributes:
        started_by: the command that started it.
        pid: its process.
        etcd: endpoints of its etcd; empty while it starts.
        root: key prefix of the cell.
        sockets: the agents' sockets, by the id of the instance that each serves.
        lives: whether whoever started it still runs.
    """

    started_by: str
    pid: int
    etcd: tuple[str, ...] = ()
    root: str = AgentSettings.root
    sockets: dict[str, str] = field(default_factory=dict)
    lives: bool = True

    def __str__(self) -> str:
        return f"'{self.started_by}' (pid {self.pid})"


def find_local_cell() -> LocalCell | None:
    """The cell of this user, also one that was left behind; None where there is none.

    Raises:
        ConfigError: the file belongs to another user.
        OSError: the file is a link, or cannot be read.
    """
    path = _path()
    check_way(_FIELD, path)
    if not os.path.lexists(path):
        return None
    with os.fdopen(open_private(path, _FIELD), "rb") as file:
        lives = not _lock(file.fileno(), fcntl.LOCK_SH)
        try:
            found = json.load(file)
            return LocalCell(**{**found, "etcd": tuple(found["etcd"]), "lives": lives})
        except (ValueError, TypeError, KeyError):
            return None  # being written, or of another release


@contextmanager
def claim_local_cell(started_by: str) -> Iterator[Callable[[LocalCell], None]]:
    """Be the one cell of this user until the context is left; what is yielded tells the other commands where it is.

    Raises:
        ConfigError: another one runs, or the file belongs to another user.
        OSError: the file is a link, or cannot be written.
    """
    path = _path()
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    check_way(_FIELD, path)
    descriptor = _open_locked(path)

    def publish(cell: LocalCell) -> None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(cell)).encode())

    try:
        publish(LocalCell(started_by, os.getpid()))
        yield publish
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _path() -> str:
    return os.path.join(os.path.dirname(default_socket_path()), "etcd-pd-local.json")


def _open_locked(path: str) -> int:
    """The file, locked; one that its last owner removed before it was locked is opened anew."""
    while True:
        descriptor = open_private(path, _FIELD)
        if not _lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            cell = find_local_cell()
            raise ConfigError(_FIELD, f"{cell or 'another'} runs already: one a user; end it first (Ctrl-C there)")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
