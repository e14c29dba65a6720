"""etcd comes back from a snapshot: the revisions go back, and what was written since is gone."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.support.etcd_server import EtcdServer

from . import snapshot
from .rig import Rig
from .test_faults import verdict

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.mark.parametrize("cluster_token", [snapshot.SAME_CLUSTER, "another"], ids=["same-cluster", "another-cluster"])
def test_rules_hold_after_a_restore(
    cluster_token: str, fresh_etcd: EtcdServer, root: str, chaos_seed: int, run_directory: Path
) -> None:
    random = Random(chaos_seed)
    with Rig(run_directory, fresh_etcd.endpoints, root, chaos_seed, timeout=25.0) as rig:
        rig.live(5.0)
        snapshot.save(fresh_etcd)
        rig.live(random.uniform(2.0, 3.0))
        with rig.fault("restore from a snapshot"):
            snapshot.restore(fresh_etcd, cluster_token)
            rig.end_witness()  # not before: while etcd goes on, so does a watch
            rig.record("void")
            snapshot.start(fresh_etcd)
            rig.new_witness(fresh_etcd.endpoints)
        rig.live(10.0)
        history = rig.finish()
    verdict(history, run_directory)
    told = {event.dp_rank for event in history if event.what == "rank_ended"}
    assert told == set(range(4)), "every rank must learn that its epoch and tokens are void"
