"""Eight ranks of a decode group take every step alike, though one of their two agents stalls, dies and comes back."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from etcd_pd import Registered
from tests.support.agents import AgentProcess, announce, wait_for
from tests.support.children import child
from tests.support.etcd_server import EtcdServer
from tests.support.group_ranks import ROOMS
from tests.support.waiting import wait_until

RANKS = 8
#: Registered by a rank that dies while half of the group looks away.
LOST_ROOMS = range(51, 56)


def test_all_ranks_of_a_group_admit_the_same_rooms_in_the_same_steps(
    etcd: EtcdServer, root: str, tmp_path: Path
) -> None:
    with (
        AgentProcess(etcd.endpoint, root, "one") as one,
        AgentProcess(etcd.endpoint, root, "two") as two,
        one.client() as prefill,
        one.client() as mortal,
    ):
        announce(prefill, dp_rank=2)
        announce(mortal, dp_rank=1)
        sockets = ",".join([one.socket_path, two.socket_path] * (RANKS // 2))
        command = [sys.executable, "-m", "tests.support.group_ranks", str(tmp_path), sockets]
        with child(command) as group:
            wait_until(lambda: len(list(tmp_path.glob("*.ready"))) == RANKS, "the group has begun", timeout=40)
            for room in ROOMS:
                owner = mortal if room in LOST_ROOMS else prefill
                owner.prefill.register(room)
                assert wait_for(owner, Registered).room == room
                if room % 10 == 0:
                    prefill.prefill.fail(room, "a fault")
                if room == 15:  # else a busy machine could see all rooms registered before the group's first step
                    wait_until((tmp_path / "0.admitted").exists, "a first step has admitted rooms", timeout=40)
                if room == 20:
                    two.pause()  # half of the group falls behind
                if room == 40:
                    two.resume()
                if room == 53:
                    two.stop(signal.SIGKILL)  # and then loses its agent, whose successor must list
                if room == 57:
                    mortal.close()
                if room == 60:
                    two.start()
            assert group.wait(timeout=40) == 0
    steps = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert all(other == steps[0] for other in steps)
    admitted = [room for step in steps[0] for room, _ in step[0]]
    failed = [room for step in steps[0] for room, _ in step[1]]
    assert sorted({*admitted, *failed}) == list(ROOMS)
    assert sorted(failed) == [room for room in ROOMS if room % 10 == 0 or room in LOST_ROOMS]
    assert len(set(admitted)) == len(admitted)
    assert len([step for step in steps[0] if step[0]]) > 1, "one step would prove nothing"
