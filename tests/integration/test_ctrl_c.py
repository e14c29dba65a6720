"""Ctrl-C ends a command that waits, and no traceback reaches a person."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.support.children import child, end

pytestmark = pytest.mark.integration
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
PAGE = ["dashboard", "--dashboard-listen", "127.0.0.1:0"]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """What takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


@pytest.mark.parametrize("command", [["status"], ["watch"], ["top"], ["doctor"], PAGE], ids=lambda words: words[0])
def test_no_traceback_is_printed_when_etcd_says_nothing(command: list[str], silent: socket.socket) -> None:
    etcd = f"http://127.0.0.1:{silent.getsockname()[1]}"
    with child([sys.executable, "-m", "etcd_pd", *command, "--etcd", etcd], **PIPES) as process:
        connection, _ = silent.accept()
        with connection:
            end(process, signal.SIGINT)
        assert process.stderr and "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_no_traceback_is_printed_when_somebody_looks_at_the_page(signum: signal.Signals) -> None:
    with (
        EmbeddedEtcd.start() as etcd,
        child([sys.executable, "-m", "etcd_pd", *PAGE, "--etcd", etcd.endpoint], **PIPES) as process,
    ):
        assert process.stdout and process.stderr
        port = int(process.stdout.readline().strip().strip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as browser:
            browser.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            with browser.makefile() as stream:
                state = next(line for line in stream if line.startswith("data: "))
                assert "state" in json.loads(state.removeprefix("data: "))
                assert end(process, signum) == 0
        assert process.stderr.read() == ""


def test_nothing_is_printed_when_it_comes_while_the_program_is_loaded() -> None:
    program = (
        "import sys, click\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "click.group = interrupted\n"
        "from etcd_pd.cli import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
