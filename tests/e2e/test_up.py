"""``etcd-pd up`` and ``etcd-pd up --demo`` as a person runs them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from etcd_pd.core.records import is_outdated
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.e2e.running import RunningStack, generation, post, post_all
from tests.support.etcdctl import EtcdCtl
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def outliving_etcd() -> Iterator[EmbeddedEtcd]:
    """An etcd that is still there when the stack is gone."""
    with EmbeddedEtcd.start() as server:
        yield server


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that has ended and is not yet reaped by init does not."""

    def lives(process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if lives(process)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_demo_ends_with_32_of_32_when_the_stack_listens_on(host: str) -> None:
    command = [sys.executable, "-m", "etcd_pd", "up", "--demo", "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout
    assert "disaggregated == undisaggregated: 32/32" in done.stdout
    assert "rooms with a key in etcd: 32/32; with a live lease: 32/32" in done.stdout
    assert "keys left: 0" in done.stdout


def test_ctrl_c_amid_requests_leaves_no_process_no_file_and_no_key(
    start_stack: Callable[..., RunningStack], outliving_etcd: EmbeddedEtcd, root: str
) -> None:
    stack = start_stack("--etcd", outliving_etcd.endpoint, "--root", root)
    processes = stack.descendants()
    assert len(processes) >= 3 + 1 + 4 + 2 + 2 + 1
    assert all(path.is_socket() for path in stack.sockets)
    with ThreadPoolExecutor(8) as pool:
        with stack.decodes_frozen():
            post_all(pool, [(f"{stack.router}/generate", generation(f"Number {number}.")) for number in range(8)])
            stack.wait_for_rooms(8)
        assert stack.stop(signal.SIGINT) == 0, stack.output.read_text()
    assert living(processes) == []
    assert stack.left_behind() == []
    assert EtcdCtl(outliving_etcd.endpoint).get_prefix(root) == []
    assert EtcdCtl(outliving_etcd.endpoint).leases() == []


def test_an_instance_that_dies_is_reported_and_when_up_itself_is_killed_all_of_it_ends(
    start_stack: Callable[..., RunningStack],
) -> None:
    stack = start_stack()
    processes = stack.descendants()
    os.kill(stack.pid("decode-1"), signal.SIGKILL)
    wait_until(lambda: "decode-1 ended with signal SIGKILL" in stack.output.read_text(), "the death is reported")
    with ThreadPoolExecutor(2) as pool:
        body = generation("Who is left?", bootstrap_room=7, **stack.bootstrap)
        replies = post_all(pool, [(f"{url}/generate", body) for url in (stack.prefill, stack.decodes[0])])
        assert [reply.result().status for reply in replies] == [200, 200]
    stack.process.kill()
    stack.process.wait()
    wait_until(lambda: not living(processes), "no process is left", 30)


def test_it_says_that_its_etcd_is_old_when_it_is(stack: RunningStack) -> None:
    version = stack.ctl.status().version
    assert (f"etcd {version} is old: for development, not for data" in stack.output.read_text()) is is_outdated(version)


def test_what_it_prints_works(stack: RunningStack) -> None:
    lines = [shlex.split(line) for line in stack.output.read_text().splitlines() if line.startswith("  ")]
    curls = [words for words in lines if words[0] == "curl" and "-d" in words]
    (scrape,) = [words[-1] for words in lines if words[0] == "curl" and "-d" not in words]
    commands = [words for words in lines if Path(words[0]).name == "etcd-pd"]
    assert all(shutil.which(words[0]) for words in commands), "each can be started from here"
    commands = [words[1:] for words in commands]
    bodies = [json.loads(words[words.index("-d") + 1]) for words in curls]
    assert [body.get("stream", False) for body in bodies] == [False, True]
    assert all(words[2] == f"{stack.router}/generate" for words in curls)
    assert post(curls[0][2], bodies[0]).body["text"]
    assert [words[0] for words in commands] == ["status", "watch", "top", "dashboard", "doctor", "fail"]
    commands.pop(3)  # it serves until Ctrl-C, and has tests of its own
    with urllib.request.urlopen(scrape, timeout=10) as answer:
        assert b"etcd_pd_registrations_total" in answer.read()
    for words in commands:
        # the live ones end after one look here
        words = [*words, "--count", "1"] if words[0] in ("watch", "top") else words
        command = [sys.executable, "-m", "etcd_pd", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=stack.environ)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert f"'etcd-pd up' (pid {stack.process.pid}) runs here" in done.stderr
    wait_until(lambda: len(stack.show("instances")["prefill"][0]["ranks"]) == 4, "the failed rank is back")


def test_the_lines_of_the_readme_work_when_pasted_into_another_terminal(stack: RunningStack) -> None:
    block = (ROOT / "README.md").read_text().partition("## Look into it")[2].partition("```sh\n")[2].partition("```")[0]
    pasted, dashboard = block.replace("http://127.0.0.1:8000", stack.router).rsplit("etcd-pd dashboard", 1)
    assert dashboard.strip().startswith("#"), "what serves until Ctrl-C comes last"
    command = ["bash", "-c", f"set -e\n{pasted}\nkill %1"]
    done = subprocess.run(command, cwd=ROOT, env=stack.environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert '"text"' in done.stdout and "epoch" in done.stdout and "register and resolve" in done.stdout
    wait_until(lambda: len(stack.show("instances")["prefill"][0]["ranks"]) == 4, "the failed rank is back")


def test_a_second_stack_of_the_same_user_is_refused_when_one_runs(stack: RunningStack) -> None:
    command = [sys.executable, "-m", "etcd_pd", "up"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=stack.environ)
    assert done.returncode == 1
    assert f"'etcd-pd up' (pid {stack.process.pid}) runs already: one a user" in done.stderr


def test_rooms_and_instances_show_what_is_there(stack: RunningStack) -> None:
    found = stack.show("instances")
    assert [instance["id"] for instance in found["prefill"]] == ["prefill-0"]
    assert [(rank["rank"], rank["state"]) for rank in found["prefill"][0]["ranks"]] == [
        (f"{number}.0.0.0", "serving") for number in range(4)
    ]
    assert sorted(instance["id"] for instance in found["decode"]) == ["decode-0", "decode-1"]
    assert len(found["agents"]) == 3
    with ThreadPoolExecutor(1) as pool, stack.decodes_frozen():
        post_all(pool, [(f"{stack.router}/generate", generation("Wait for me."))])
        stack.wait_for_rooms(1)
        (room,) = stack.show("rooms")["rooms"]
    assert room["instance"] == "prefill-0" and room["state"] == "assigned"
    assert room["seconds_left"] > 0
    stack.wait_until_empty()
    assert stack.show("rooms")["rooms"] == []


def test_a_router_port_that_is_taken_is_an_error_that_leaves_nothing(tmp_path: Path, stack: RunningStack) -> None:
    taken = stack.router.rpartition(":")[2]
    command = [sys.executable, "-m", "etcd_pd", "up", "--port", taken, "--run-dir", str(tmp_path)]
    with tempfile.TemporaryDirectory() as runtime:
        environ = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
        assert os.listdir(runtime) == []
    assert done.returncode == 1
    assert f"port: cannot listen on 127.0.0.1:{taken}: Address already in use" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert post(f"{stack.router}/generate", generation("Unharmed?")).status == 200
