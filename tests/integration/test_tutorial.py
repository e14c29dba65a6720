"""docs/tutorial.md: its code is the examples' code, and that code does what the tutorial shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.agents import AgentProcess
from tests.support.children import child
from tests.support.etcd_server import EtcdServer

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
PREFILL, DECODE = (ROOT / "examples" / f"tutorial_{role}.py" for role in ("prefill", "decode"))
ADDRESS = "127.0.0.1:8998"


@contextmanager
def running(agent: AgentProcess, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "ETCD_PD_SOCKET": agent.socket_path}
    with child(
        [sys.executable, *command], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def tell(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{words}\n")


@pytest.mark.parametrize("example", [PREFILL, DECODE])
def test_the_tutorial_shows_the_examples(example: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    assert example.read_text() in blocks


def test_the_client_takes_some_twenty_lines() -> None:
    for example in (PREFILL, DECODE):
        code = [
            text
            for text in example.read_text().splitlines()
            if text.strip() and not text.strip().startswith(("#", '"'))
        ]
        assert len(code) <= 30


@pytest.mark.integration
def test_decode_learns_the_rank_and_when_it_will_not_come(etcd: EtcdServer, root: str) -> None:
    with AgentProcess(etcd.endpoint, root) as agent, running(agent, PREFILL) as prefill:
        assert line(prefill).startswith("Announced(")
        with running(agent, DECODE, ADDRESS, "7") as decode:
            tell(prefill, "register 7")
            assert line(decode) == "room 7 is with dp_rank 1 of my-prefill"
            assert decode.wait(10) == 0
        assert line(prefill).startswith("Registered(")
        with running(agent, DECODE, ADDRESS, "8") as decode:
            tell(prefill, "fail 8")
            assert line(decode) == f"RoomFailed: room 8 of {ADDRESS}: failed by prefill: out of memory"
        tell(prefill, "release 7")
        assert prefill.stdin is not None
        prefill.stdin.close()
        assert prefill.wait(10) == 0
