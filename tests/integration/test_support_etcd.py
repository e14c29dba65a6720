"""The tests' own tools do what they say: a test that trusts a fixture which does nothing proves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from tests.support.etcd_server import EtcdCluster, EtcdServer
from tests.support.etcdctl import EtcdCtl, EtcdError
from tests.support.leaks import LeakCheck
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


def test_client_sees_keys_and_leases(etcd: EtcdServer, root: str) -> None:
    ctl = etcd.ctl
    lease = ctl.grant(60)
    first = ctl.put(f"{root}/a", "1", lease)
    second = ctl.put(f"{root}/b", "two")

    found = ctl.get(f"{root}/a")
    assert found is not None
    assert (found.value, found.create_revision, found.version, found.lease) == ("1", first, 1, lease)
    assert [(kv.key, kv.value) for kv in ctl.get_prefix(root)] == [(f"{root}/a", "1"), (f"{root}/b", "two")]
    assert ctl.count_prefix(root) == 2
    assert second == ctl.revision()

    info = ctl.lease(lease)
    assert info.granted_ttl == 60
    assert 0 < info.ttl <= 60
    assert info.keys == (f"{root}/a",)
    assert lease in ctl.leases()

    ctl.revoke(lease)
    assert lease not in ctl.leases()
    assert ctl.lease(lease).ttl == -1
    assert [kv.key for kv in ctl.get_prefix(root)] == [f"{root}/b"]
    assert ctl.delete_prefix(root) == 1


def test_counters_count_calls_and_reading_them_does_not(etcd: EtcdServer, root: str) -> None:
    before = etcd.ctl.calls("Range")
    assert etcd.ctl.calls("Range") == before
    for _ in range(3):
        etcd.ctl.get(root)
    assert etcd.ctl.calls("Range") == before + 3


def test_compaction_forgets(etcd: EtcdServer, root: str) -> None:
    ctl = etcd.ctl
    old = ctl.put(f"{root}/k", "old")
    ctl.put(f"{root}/k", "new")
    ctl.compact()
    with pytest.raises(EtcdError, match="compacted"):
        ctl.compact(old)


def test_kill_and_start_keep_endpoint_and_data(etcd: EtcdServer, root: str) -> None:
    endpoint = etcd.endpoint
    etcd.ctl.put(f"{root}/k", "v")
    etcd.kill()
    assert etcd.state == "exited"
    assert not etcd.ctl.healthy()
    etcd.start()
    assert etcd.endpoint == endpoint
    found = etcd.ctl.get(f"{root}/k")
    assert found is not None and found.value == "v"


def test_pause_leaves_the_port_open_and_silent(etcd: EtcdServer, root: str) -> None:
    etcd.pause()
    with pytest.raises(OSError):
        EtcdCtl(etcd.endpoint, timeout=0.3).put(root, "v")
    etcd.unpause()
    etcd.ctl.put(root, "v")


def test_a_mistreated_server_is_left_dead(etcd: EtcdServer) -> None:
    etcd.kill()


def test_and_found_healthy_by_the_next(etcd: EtcdServer) -> None:
    assert etcd.ctl.healthy()


def test_fresh_etcd_is_another_one(etcd: EtcdServer, fresh_etcd: EtcdServer) -> None:
    assert fresh_etcd.endpoint != etcd.endpoint
    assert fresh_etcd.ctl.count_prefix("") == 0


def test_a_killed_leader_is_replaced(etcd_cluster: EtcdCluster, root: str) -> None:
    leader = etcd_cluster.leader()
    survivors = etcd_cluster.others(leader)
    leader.kill()
    successor = etcd_cluster.leader(among=survivors)
    assert successor is not leader
    successor.ctl.put(root, "written without it")
    leader.start()
    found = leader.ctl.get(root)
    assert found is not None and found.value == "written without it"


def test_a_paused_leader_is_replaced(etcd_cluster: EtcdCluster, root: str) -> None:
    leader = etcd_cluster.leader()
    leader.pause()
    successor = etcd_cluster.leader(among=etcd_cluster.others(leader))
    assert successor is not leader
    wait_until(lambda: _writes(successor.ctl, root), "a write without the paused member")


def test_a_partitioned_leader_answers_but_cannot_write(etcd_cluster: EtcdCluster, root: str) -> None:
    leader = etcd_cluster.leader()
    others = etcd_cluster.others(leader)
    etcd_cluster.partition(leader)
    successor = wait_until(
        lambda: next((node for node in [etcd_cluster.leader(among=others)] if node is not leader), None),
        "a leader on the larger side",
    )
    successor.ctl.put(root, "v")
    assert leader.ctl.metric("process_open_fds") > 0, "its clients still reach it"
    assert not _writes(EtcdCtl(leader.endpoint, timeout=1.0), root)
    etcd_cluster.heal(leader)
    wait_until(lambda: _writes(leader.ctl, root), "a write through the healed member", timeout=20)


def test_the_cluster_is_whole_again(etcd_cluster: EtcdCluster) -> None:
    assert [node.state for node in etcd_cluster.nodes] == ["running"] * 3
    assert {node.ctl.status().leader for node in etcd_cluster.nodes} == {
        etcd_cluster.leader().ctl.status().member_id,
    }


def test_leaked_threads_are_named() -> None:
    stop = threading.Event()
    check = LeakCheck("threads", grace=0.2)
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    assert check.leaked() == ["thread 'forgotten'"]
    stop.set()
    thread.join()


@pytest.mark.parametrize("independent", [False, True])
def test_leaked_processes_are_named_and_killed(independent: bool) -> None:
    check = LeakCheck("processes", grace=0.2)
    # its first word: before, it may have no environment yet to be known by
    sleeper = "import time; print(flush=True); time.sleep(60)"
    if independent:
        # Its parent is gone when it is looked for.
        starter = (
            "import subprocess, sys; subprocess.Popen("
            f"[sys.executable, '-c', {sleeper!r}], start_new_session=True, stdout=subprocess.PIPE).stdout.read(1)"
        )
        subprocess.run([sys.executable, "-W", "ignore", "-c", starter], check=True)
        leaked = check.leaked()
    else:
        with subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE) as child:
            assert child.stdout and child.stdout.read(1)
            leaked = check.leaked()
    assert len(leaked) == 1
    assert "time.sleep(60)" in leaked[0]
    assert check.leaked() == []


def test_a_forked_child_is_seen() -> None:
    check = LeakCheck("fork", grace=0.2)
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    (leaked,) = check.leaked()
    assert str(pid) in leaked


def _writes(ctl: EtcdCtl, key: str) -> bool:
    try:
        ctl.put(key, "v")
    except (OSError, EtcdError):
        return False
    return True
