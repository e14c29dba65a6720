"""Fleets of other shapes, to whom several things are done in a row; the same judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from etcd_pd.config import EtcdSettings
from etcd_pd.store.admin import EtcdAdmin
from tests.support.etcd_server import EtcdCluster

from .nemesis import (
    Act,
    agent_killed_briefly,
    agent_stopped,
    decode_agent_killed_amid_a_death,
    instance_restarted,
    leader_killed,
    rank_drained,
    rank_killed,
)
from .rig import Rig, Shape
from .test_faults import verdict

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

#: A rank's two processes are on two nodes; ranks are computed from the room; there is one; the cell is crowded.
SHAPES = {
    "tp-2-over-two-agents": Shape(("a0", "a1", "a1", "a0"), tp=2),
    "tp-2-behind-one-agent": Shape(("a0",) * 4, tp=2),
    "computed-ranks": Shape(policy="follow_bootstrap_room"),
    "single-rank": Shape(("a0",)),
    "20000-keys": Shape(crowd=20_000),
}
ACTS: Sequence[Act] = (
    rank_killed,
    agent_killed_briefly,
    decode_agent_killed_amid_a_death,
    agent_stopped,
    instance_restarted,
    leader_killed,
    rank_drained,
)


def members_restarted(rig: Rig, cluster: EtcdCluster, random: Random) -> None:
    """Every member is restarted in turn, of an etcd that answers nobody without a token."""
    with rig.fault("members restart"):
        for node in random.sample(cluster.nodes, len(cluster.nodes)):
            node.stop()
            rig.live(random.uniform(0.2, 0.6))
            node.start()
            rig.live(random.uniform(2.0, 3.0))


#: Of these none asks a member for its state, which one with users tells nobody without a token.
ACTS_WITH_USERS: Sequence[Act] = (rank_killed, agent_killed_briefly, members_restarted, agent_stopped)
PASSWORD = "correct-horse"


@pytest.mark.parametrize("name", SHAPES)
def test_rules_hold_when_much_is_done_to_a_fleet_of_another_shape(
    name: str, etcd_cluster: EtcdCluster, root: str, chaos_seed: int, run_directory: Path
) -> None:
    with Rig(run_directory, etcd_cluster.endpoints, root, chaos_seed, timeout=20.0, shape=SHAPES[name]) as rig:
        suffer(rig, etcd_cluster, ACTS, chaos_seed)


def test_rules_hold_when_etcd_has_users_and_members_forget_their_tokens(
    _docker: None, root: str, chaos_seed: int, run_directory: Path
) -> None:
    with EtcdCluster() as cluster:
        asyncio.run(add_user(cluster.endpoints[0], "agent", root))
        rig = Rig(run_directory, cluster.endpoints, root, chaos_seed, timeout=20.0, user="agent", password=PASSWORD)
        with rig:
            suffer(rig, cluster, ACTS_WITH_USERS, chaos_seed)


def suffer(rig: Rig, cluster: EtcdCluster, acts: Sequence[Act], seed: int) -> None:
    """Do all of it, in an order that the seed decides, and judge."""
    random = Random(seed)
    rig.live(5.0 + random.random())
    for act in random.sample(acts, len(acts)):
        act(rig, cluster, random)
        rig.live(random.uniform(1.0, 2.0))
    verdict(rig.finish(), rig.directory)


async def add_user(endpoint: str, name: str, root: str) -> None:
    """Turn users on: root, and one who may do all in a cell."""
    async with EtcdAdmin(EtcdSettings(endpoints=(endpoint,))) as admin:
        for user in ("root", name):
            await admin.add_user(user, PASSWORD)
        await admin.grant_role("root", "root")
        await admin.add_role("cell")
        await admin.permit("cell", f"{root}/".encode(), write=True)
        await admin.grant_role(name, "cell")
        await admin.enable_auth()
