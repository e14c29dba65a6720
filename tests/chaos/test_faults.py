"""Every fault, with load running; then the judge decides over the history."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.support.etcd_server import EtcdCluster

from .facts import Facts
from .history import Event
from .judge import judge
from .nemesis import FAULTS
from .rig import RATE, Rig

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.quick] if fault.quick else []) for name, fault in FAULTS.items()]
)
def test_rules_hold_under(
    name: str, etcd_cluster: EtcdCluster, root: str, chaos_seed: int, run_directory: Path
) -> None:
    fault, random = FAULTS[name], Random(chaos_seed)
    with Rig(
        run_directory, etcd_cluster.endpoints, root, chaos_seed, timeout=fault.timeout, proxied=fault.proxied
    ) as rig:
        rig.live(5.0 + random.random())
        for _ in range(fault.cycles):
            fault.act(rig, etcd_cluster, random)
            rig.live(random.uniform(1.0, 2.0))
        history = rig.finish()
    verdict(history, run_directory)


def verdict(history: list[Event], directory: Path) -> None:
    """Fail where a rule was broken, or where too little happened for a verdict."""
    counts = Facts(history).counts
    wanted = [event.t for event in history if event.what == "want"]
    print(f"{directory}: {len(history)} events", dict(sorted(counts.items())))
    violations = judge(history)
    assert not violations, "\n".join(map(str, [*violations[:20], f"... {len(violations)} in all, in {directory}"]))
    assert len(wanted) / (wanted[-1] - wanted[0]) > 0.9 * RATE, "the load was less than it should be"
    assert counts["resolved"] > 0.4 * counts["want"], "hardly anything was resolved"
