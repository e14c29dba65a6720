"""The cell that a user runs on this machine: one, found by the others, and known as gone when it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd_pd.errors import ConfigError
from etcd_pd.reference.local.local_cell import LocalCell, claim_local_cell, find_local_cell
from tests.support.children import child

CELL = LocalCell("etcd-pd up", 7, ("http://127.0.0.1:1", "http://127.0.0.1:2"), "/cell", {"prefill-0": "/run/p.sock"})
#: Another process that has a cell until its standard input ends.
OWNER = """
import os, sys
from etcd_pd.reference.local.local_cell import LocalCell, claim_local_cell
with claim_local_cell("etcd-pd up") as tell:
    tell(LocalCell("etcd-pd up", os.getpid(), ("http://127.0.0.1:1",)))
    print("told", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cell of this test's user is told."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "etcd-pd-local.json"


@contextmanager
def owner() -> Iterator[subprocess.Popen[str]]:
    """Another process that runs a cell."""
    with child([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "told\n"
        yield process


def test_nothing_is_found_and_nothing_is_made_when_no_cell_runs(file: Path) -> None:
    assert find_local_cell() is None
    assert not file.exists()


def test_a_cell_is_found_when_it_was_told_and_gone_when_its_owner_ends(file: Path) -> None:
    with claim_local_cell("etcd-pd up") as tell:
        assert find_local_cell() == LocalCell("etcd-pd up", os.getpid())
        tell(CELL)
        assert find_local_cell() == CELL
        assert file.stat().st_mode & 0o777 == 0o600
    assert not file.exists()
    assert find_local_cell() is None


def test_the_directory_is_its_users_alone_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "new"))
    with claim_local_cell("etcd-pd up"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_second_cell_is_refused_when_one_runs() -> None:
    with owner() as process, pytest.raises(ConfigError, match=rf"'etcd-pd up' \(pid {process.pid}\) runs already"):
        claim_local_cell("etcd-pd etcd").__enter__()


def test_a_cell_is_known_as_gone_and_its_place_is_free_when_its_owner_was_killed(file: Path) -> None:
    with owner() as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = find_local_cell()
        assert found is not None and (found.pid, found.lives) == (process.pid, False)
        with claim_local_cell("etcd-pd up") as tell:
            tell(CELL)
            assert find_local_cell() == CELL


@pytest.mark.parametrize("text", ["", "{", "[]", '{"etcd": []}', '{"etcd": 7}'])
def test_no_cell_is_found_when_the_file_is_not_of_this_release(file: Path, text: str) -> None:
    file.write_text(text)
    assert find_local_cell() is None


def test_a_link_is_not_followed_when_it_lies_in_the_file_s_place(file: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    file.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        find_local_cell()
    with pytest.raises(OSError, match="symbolic links"):
        claim_local_cell("etcd-pd up").__enter__()
    assert precious.read_text() == "kept"


def test_a_strangers_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.touch()
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    with pytest.raises(ConfigError, match="belongs to uid"):
        find_local_cell()
