"""Ranks that stay for a while after their process: each is withdrawn once."""

from __future__ import annotations

import asyncio

import pytest

from etcd_pd.agent.lingering import Lingering
from etcd_pd.core.claims import LocalRank
from etcd_pd.wire.values import InstanceInfo, Rank, RankEndpoint, Topology
from tests.support.agent_in_memory import until

pytestmark = pytest.mark.asyncio


def rank(port: int, linger: float = 0.01) -> LocalRank:
    info = InstanceInfo("", "launch", (), Topology(), "round_robin")
    return LocalRank("p", Rank(0), info, RankEndpoint(Rank(0), "10.0.0.1", port), linger=linger)


async def test_both_are_withdrawn_when_two_processes_of_one_rank_have_gone() -> None:
    """The second may have announced itself before the agent noticed that the first was gone."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    withdrawn: list[LocalRank] = []
    lingering = Lingering(withdrawn.append)
    first, second = rank(1, linger=600.0), rank(2)
    lingering.add(first)
    lingering.add(second)
    assert withdrawn == [first] and lingering.of("p") == [second]
    await until(lambda: not lingering, "the second has gone")
    assert withdrawn == [first, second] and errors == []


async def test_a_rank_is_not_withdrawn_when_its_process_s_successor_takes_it_over() -> None:
    withdrawn: list[LocalRank] = []
    lingering = Lingering(withdrawn.append)
    left = rank(1, linger=600.0)
    lingering.add(left)
    assert lingering.take_over(rank(1)) is left
    assert withdrawn == [] and not lingering
