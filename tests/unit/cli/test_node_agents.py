"""What agents on sockets here say of themselves, from one look to the next."""

from __future__ import annotations

from typing import Any

import pytest

from etcd_pd.cli import node_agents
from etcd_pd.cli.from_agent import Memory
from etcd_pd.cli.node_agents import NodeAgents
from etcd_pd.wire.to_client import Looked

pytestmark = pytest.mark.asyncio
Answers = dict[str, Memory | None]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What is answered at each socket."""
    found: Answers = {}
    monkeypatch.setattr(node_agents, "ask_memory", lambda socket, root: found.get(socket))
    return found


def memory(agent: str, *gone: str, seconds: float = 60.0, **says: Any) -> Memory:
    looked = Looked(agent, "/cell", 7, session="live", watch="synced", **says)
    missed = [{"kind": "agent", "name": name, "rank": None, "seconds": 1.0, "left": False} for name in gone]
    return Memory(agent, f"/{agent}", seconds, missed, looked)


async def test_quantiles_are_of_what_was_counted_between_looks(answers: Answers) -> None:
    agents = NodeAgents(["/a", "/b"], "/cell")
    answers["/a"] = memory("a", register_seconds=[(0.5, 1000)])
    answers["/b"] = memory("b")
    await agents.ask(0.0)
    assert agents.latencies() == {"register": None, "resolve": None}
    answers["/a"] = memory("a", register_seconds=[(0.001, 98), (0.5, 1000)])
    answers["/b"] = memory("b", register_seconds=[(0.25, 2)], resolve_seconds=[(2.0, 1)])
    await agents.ask(2.0)
    assert agents.latencies() == {"register": {"p50": 0.001, "p99": 0.25}, "resolve": {"p50": 2.0, "p99": 2.0}}


async def test_quantiles_are_of_the_last_seconds_alone(answers: Answers) -> None:
    agents = NodeAgents(["/a"], "/cell")
    for now, counts in ((0.0, []), (2.0, [(0.5, 5)]), (8.0, [(0.5, 5)]), (12.0, [(0.5, 5)])):
        answers["/a"] = memory("a", resolve_seconds=counts)
        await agents.ask(now)
    assert agents.latencies()["resolve"] is None


async def test_counting_begins_anew_when_another_agent_took_the_socket(answers: Answers) -> None:
    agents = NodeAgents(["/a"], "/cell")
    for now, counts in ((0.0, [(0.5, 9)]), (2.0, [(0.5, 1)]), (4.0, [(0.25, 3), (0.5, 1)])):
        answers["/a"] = memory("a", resolve_seconds=counts)
        await agents.ask(now)
    assert agents.latencies()["resolve"] == {"p50": 0.25, "p99": 0.25}


async def test_an_agent_is_a_problem_when_it_no_longer_answers(answers: Answers) -> None:
    agents = NodeAgents(["/a", "/never"], "/cell")
    answers["/a"] = memory("a")
    await agents.ask(0.0)
    assert agents.problems(0.0, None) == []
    assert agents.rows(0.0) == [{"id": "a", "silent_seconds": 0.0, "session": "live", "watch": "synced"}]
    answers["/a"] = None
    assert await agents.ask(7.0) is None
    (problem,) = agents.problems(7.0, None)
    assert (problem.text, problem.seconds) == ("agent a does not answer on /a", 7.0)
    assert agents.rows(7.0)[0]["silent_seconds"] == 7.0
    assert agents.problems(7.0, memory("b", "a")) == [], "it is missed already"


async def test_the_longest_memory_counts_when_several_answer(answers: Answers) -> None:
    agents = NodeAgents(["/a", "/b"], "/cell")
    answers.update({"/a": memory("a", seconds=5.0), "/b": memory("b", seconds=50.0)})
    assert await agents.ask(0.0) is answers["/b"]
