"""Where a cell's agents go among etcd's members: evenly, alike for all who ask, and without many moves."""

from __future__ import annotations

from collections import Counter

import pytest

from etcd_pd.core.placement import place


def names(count: int) -> list[bytes]:
    return [b"agent-%d" % number for number in range(count)]


@pytest.mark.parametrize("members", [1, 3, 5])
@pytest.mark.parametrize("agents", [1, 6, 7, 100])
def test_no_member_has_more_than_its_share_when_agents_are_placed(agents: int, members: int) -> None:
    load = Counter(place(names(agents), range(1, members + 1)).values())
    assert sum(load.values()) == agents
    assert max(load.values()) == -(-agents // members)


def test_everybody_gets_the_same_answer_when_the_order_differs() -> None:
    agents = names(20)
    assert place(agents, [1, 2, 3]) == place(reversed(agents), [1, 2, 3])


def test_most_agents_stay_when_one_comes() -> None:
    before, after = place(names(60), [1, 2, 3]), place(names(61), [1, 2, 3])
    assert sum(before[name] != after[name] for name in before) <= 10


def test_nobody_is_placed_when_there_are_no_agents() -> None:
    assert place([], [1, 2, 3]) == {}
