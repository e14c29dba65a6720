"""Nobody else in the way: directories that others made under /tmp, links in place of locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd.agent.server import _make_room
from etcd_pd.client.start import start_agent
from etcd_pd.errors import ConfigError
from etcd_pd.wire.private import check_way, open_private

STRANGER = 54_321


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory like /tmp: everybody may make things in it, and delete their own alone."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.fixture
def squatted(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in it that another user made."""
    directory = shared / "etcd-pd-0"
    directory.mkdir(mode=0o755)
    give_away(directory, monkeypatch)
    return directory


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's; where that is not allowed, be another user."""
    if os.getuid() == 0:
        os.chown(path, STRANGER, STRANGER)
    else:
        monkeypatch.setattr(os, "getuid", lambda: STRANGER)


def test_a_socket_is_not_connected_to_when_its_directory_is_a_strangers(squatted: Path) -> None:
    with pytest.raises(ConfigError, match=f"{squatted} belongs to uid"):
        etcd_pd.connect(str(squatted / "agent.sock"))


def test_an_agent_does_not_listen_when_its_directory_is_a_strangers(squatted: Path) -> None:
    with pytest.raises(ConfigError, match=f"socket: {squatted} belongs to uid"):
        _make_room(str(squatted / "agent.sock"))


def test_no_agent_is_started_when_its_directory_is_a_strangers(squatted: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to uid"):
        start_agent(str(squatted / "agent.sock"))
    assert list(squatted.iterdir()) == []


def test_a_client_stays_away_when_a_stranger_made_the_directory_after_it_began(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "mine" / "agent.sock"
    with etcd_pd.connect(str(path)) as client:
        path.parent.mkdir()
        give_away(path.parent, monkeypatch)
        assert client.decode.poll() == [] and client.fileno() == -1


@pytest.mark.parametrize("path", ["own/agent.sock", "own/deeper/agent.sock", "not-there/agent.sock"])
def test_ones_own_directory_is_used_when_it_lies_where_everybody_may_write(shared: Path, path: str) -> None:
    (shared / "own" / "deeper").mkdir(parents=True)
    check_way("socket", str(shared / path))


def test_a_link_is_not_followed_when_a_lock_is_opened(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "agent.sock.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        start_agent(str(tmp_path / "agent.sock"))
    assert precious.read_text() == "kept"


def test_a_lock_is_refused_when_it_is_a_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch(0o666)
    give_away(lock, monkeypatch)
    with pytest.raises(ConfigError, match="belongs to uid"):
        open_private(str(lock))


def test_a_private_file_is_readable_by_its_user_alone_when_it_is_new(tmp_path: Path) -> None:
    os.close(open_private(str(tmp_path / "new")))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
