"""A cell in which nothing is written, as at night: the watch stays synced and silent over etcd's restart."""

from __future__ import annotations

import re
import time

import pytest

from tests.support.agents import AgentProcess
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import wait_until

# half a minute, on each of today's etcds: make test-etcd runs it, make test does not
pytestmark = [pytest.mark.integration, pytest.mark.every_etcd, pytest.mark.chaos]

#: How long the agent is looked at, seconds: twelve times its default watch_silence_seconds.
LOOK_SECONDS = 25.0


def states(agent: AgentProcess) -> list[str]:
    """What it has logged of its watch's state."""
    return re.findall(r"watch (synced|stale) revision=", agent.log)


def test_an_idle_watch_is_stale_once_when_etcd_restarts_and_when_it_freezes(fresh_etcd: EtcdServer, root: str) -> None:
    with AgentProcess(fresh_etcd.endpoint, root, "idle", "--session-ttl-seconds=60") as agent:
        wait_until(lambda: states(agent) == ["synced"], "the watch is synced", timeout=30)
        wait_until(lambda: fresh_etcd.ctl.get(f"{root}/v1/agents/idle"), "the agent's key is written")
        revision = fresh_etcd.ctl.revision()
        fresh_etcd.stop()
        fresh_etcd.start()
        time.sleep(LOOK_SECONDS)
        assert states(agent) == ["synced", "stale", "synced"], agent.log
        assert fresh_etcd.ctl.revision() == revision, "nothing was written meanwhile"
        fresh_etcd.pause()
        wait_until(lambda: states(agent)[-1] == "stale", "a frozen etcd is noticed all the same", timeout=20)
        fresh_etcd.unpause()
        wait_until(lambda: states(agent)[-1] == "synced", "it is synced again", timeout=30)
