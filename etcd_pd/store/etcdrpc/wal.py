"""A member's write-ahead log on its disk: whether its next start reads what etcd 3.7 cannot read.

A member of etcd 3.5 enters its own URLs into the log as a request of the v2 API. etcd 3.7, which has that API no more,
panics where it must read such a request again; it reads what comes after the last snapshot.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from .proto.wal_pb2 import Entry, Record, Request, Snapshot

#: Types of records, and of an entry that is a request.
_ENTRY, _SNAPSHOT, _REQUEST = 2, 5, 0
#: A file's name: its number, and the index of its first entry.
_NAME = re.compile(r"[0-9a-f]{16}-([0-9a-f]{16})\.wal")
#: A record's length, of which the highest byte says how it was padded.
_LENGTH = struct.Struct("<Q")


def reads_v2_requests(wal: Path) -> bool:
    """Whether the member whose log is in this directory reads requests of the v2 API when it starts.

    What is no log of etcd's has none: etcd itself refuses it, and says so.

    Raises:
        OSError: the log cannot be read.
    """
    try:
        return _reads_v2_requests(wal)
    except DecodeError:
        return False


def _reads_v2_requests(wal: Path) -> bool:
    files = {path: int(name[1], 16) for path in sorted(wal.iterdir()) if (name := _NAME.fullmatch(path.name))}
    snapshot = next((index for path in reversed(files) if (index := _last_snapshot(path))), 0)
    later = [path for path, first in files.items() if first > snapshot]
    found: list[int] = []
    for path in [*files][-len(later) - 1 :]:
        for index, old in _entries(path):
            while found and found[-1] >= index:
                found.pop()  # a later leader wrote another entry in its place
            if old and index > snapshot:
                found.append(index)
    return bool(found)


def _last_snapshot(path: Path) -> int:
    """Index of the last one that a file names; 0: it names none."""
    snapshots = [record.data for record in _records(path) if record.type == _SNAPSHOT]
    return Snapshot.FromString(snapshots[-1]).index if snapshots else 0


def _entries(path: Path) -> Iterator[tuple[int, bool]]:
    """Each entry's index, and whether it is a request of the v2 API."""
    for record in _records(path):
        if record.type == _ENTRY:
            entry = Entry.FromString(record.data)
            yield entry.Index, entry.Type == _REQUEST and bool(Request.FromString(entry.Data).method)


def _records(path: Path) -> Iterator[Record]:
    """Those of a file, up to its end or to what was not written whole."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log:
        at = 0
        while at + _LENGTH.size <= len(log):
            (word,) = _LENGTH.unpack_from(log, at)
            length, padding = word & (1 << 56) - 1, word >> 56 & 7 if word >> 63 else 0
            start = at + _LENGTH.size
            if not length or start + length > len(log):
                return
            yield Record.FromString(log[start : start + length])
            at = start + length + padding
