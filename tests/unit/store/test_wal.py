"""Whether a member's next start reads requests of etcd's v2 API, from logs made here as etcd lays them out."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from etcd_pd.store.etcdrpc.proto.wal_pb2 import Entry, Record, Request, Snapshot
from etcd_pd.store.etcdrpc.wal import reads_v2_requests

#: What etcd reserves for a file beforehand, bytes; here less than its 64 MiB.
RESERVED = 4096


def old(index: int) -> Record:
    return Record(type=2, data=Entry(Index=index, Data=Request(method=b"PUT").SerializeToString()).SerializeToString())


def new(index: int) -> Record:
    v3 = b"\x08\x07\x22\x03\x0a\x01k"  # ID 7, and a put
    return Record(type=2, data=Entry(Index=index, Data=v3).SerializeToString())


def snapshot(index: int) -> Record:
    return Record(type=5, data=Snapshot(index=index).SerializeToString())


def write(wal: Path, *files: tuple[int, list[Record]], end: bytes = b"") -> Path:
    """Each with the index of its first entry."""
    wal.mkdir(exist_ok=True)
    for number, (first, records) in enumerate(files):
        log = b""
        for record in records:
            body = record.SerializeToString()
            padding = -len(body) % 8
            log += struct.pack("<Q", len(body) | (0x80 | padding) << 56 if padding else len(body)) + body
            log += bytes(padding)
        (wal / f"{number:016x}-{first:016x}.wal").write_bytes((log + end).ljust(RESERVED, b"\0"))
    return wal


def test_requests_of_v2_are_read_when_no_snapshot_was_taken(tmp_path: Path) -> None:
    assert reads_v2_requests(write(tmp_path, (0, [snapshot(0), new(1), old(2), new(3)])))


@pytest.mark.parametrize(("at", "read"), [(1, True), (2, False), (3, False)])
def test_requests_of_v2_are_read_when_they_come_after_the_last_snapshot(tmp_path: Path, at: int, read: bool) -> None:
    assert reads_v2_requests(write(tmp_path, (0, [snapshot(0), new(1), old(2), new(3), snapshot(at)]))) is read


@pytest.mark.parametrize(("at", "read"), [(2, True), (3, False), (4, False)])
def test_requests_of_v2_are_read_when_a_later_file_names_the_snapshot(tmp_path: Path, at: int, read: bool) -> None:
    files = (0, [snapshot(0), new(1), new(2), old(3)]), (4, [new(4), snapshot(at)]), (5, [new(5)])
    assert reads_v2_requests(write(tmp_path, *files)) is read


def test_nothing_of_v2_is_read_when_another_leader_wrote_in_its_place(tmp_path: Path) -> None:
    assert not reads_v2_requests(write(tmp_path, (0, [new(1), old(2), old(3), new(2)])))


def test_nothing_of_v2_is_read_when_the_members_of_the_cluster_change(tmp_path: Path) -> None:
    change = Entry(Type=1, Index=1, Data=Request(method=b"PUT").SerializeToString())
    assert not reads_v2_requests(write(tmp_path, (0, [Record(type=2, data=change.SerializeToString())])))


def test_what_was_written_whole_is_read_when_a_record_was_not(tmp_path: Path) -> None:
    half = struct.pack("<Q", 2 * RESERVED)
    assert reads_v2_requests(write(tmp_path, (0, [old(1)]), end=half))
    assert not reads_v2_requests(write(tmp_path, (0, [new(1)]), end=half))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 64, struct.pack("<Q", 8) + b"\xff" * 8])
def test_a_log_is_left_to_etcd_when_it_is_none_of_etcds(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{0:016x}-{0:016x}.wal").write_bytes(content)
    (tmp_path / "0.tmp").write_bytes(b"no log")
    assert not reads_v2_requests(tmp_path)


def test_nothing_is_read_when_there_is_no_file(tmp_path: Path) -> None:
    assert not reads_v2_requests(tmp_path)
