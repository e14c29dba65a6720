"""etcd upgraded by minor versions, a member at a time, while rooms are registered and resolved."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from etcd_pd.kubernetes.guards import SNAPSHOT_COUNT
from tests.support.etcd_server import EtcdCluster, versions

from .figures import costs, table
from .rig import Rig
from .test_faults import verdict

pytestmark = pytest.mark.chaos
#: As the chart's members of 3.6 take them, or 3.7 would read the log of 3.5 and panic (docs/operations.md).
SNAPSHOTS = [f"--snapshot-count={SNAPSHOT_COUNT}"]


@pytest.mark.timeout(300)
def test_rules_hold_and_no_room_is_lost_when_etcd_is_upgraded(
    _docker: None, root: str, chaos_seed: int, run_directory: Path
) -> None:
    (_, first), *later = versions().items()
    assert later, "one version of etcd alone is here: there is nothing to upgrade to"
    with (
        EtcdCluster(args=SNAPSHOTS, image_name=first) as cluster,
        Rig(run_directory, cluster.endpoints, root, chaos_seed) as rig,
    ):
        rig.live(5.0)
        for version, image in later:
            with rig.fault(f"every member to {version}"):
                for node in cluster.nodes:
                    cluster.upgrade(node, image)
                    rig.live(2.0)
            assert {node.ctl.status().version for node in cluster.nodes} == {version.removeprefix("v")}
            rig.live(3.0)
        history = rig.finish()
    verdict(history, run_directory)
    said = Counter(event.what for event in history)
    # the workload fails rooms and contends for some on purpose
    refused = [event for event in history if event.what == "rejected" and event.error != "RoomConflict"]
    lost = [event for event in history if event.what == "ended" and event.error != "RoomFailed"]
    print(f"{said['registered']} registrations acknowledged, {said['resolved']} resolved; ", end="")
    print(f"{len(refused)} refused, {len(lost)} waits lost")
    print(table([costs(history)]))
    assert not refused and not lost, [*refused[:5], *lost[:5]]
