"""The example of docs/integrations.md does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "disaggregated_engine.py"


def test_every_request_is_fetched_from_the_rank_that_took_it_and_nothing_stays(etcd: EtcdServer, root: str) -> None:
    with AgentProcess(etcd.endpoint, root) as agent:
        environment = {**os.environ, "ETCD_PD_SOCKET": agent.socket_path}
        command = [sys.executable, str(EXAMPLE), "--requests", "8"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [
            re.fullmatch(r"room (\d+) from dp_rank ([01]): cache of room \1", line)
            for line in done.stdout.split("\n")[:-1]
        ]
        assert len(lines) == 8 and all(lines), done.stdout
        assert {line[2] for line in lines if line} == {"0", "1"}
        wait_until(lambda: etcd.ctl.get_prefix(f"{root}/v1/rooms/") == [], "every room was given back")
