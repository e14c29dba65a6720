"""Each policy against a sentence that says what it does, for any loads."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from etcd_pd import ConfigError
from etcd_pd.reference.balance import POLICIES, Load, NoServingRank, Request, create

loads = st.lists(
    st.builds(
        Load,
        requests=st.integers(0, 50),
        tokens=st.integers(0, 5000),
        serving=st.booleans(),
        waiting_tokens=st.integers(0, 5000),
    ),
    min_size=1,
    max_size=8,
)
requests = st.builds(
    Request, room=st.integers(0, 2**63 - 1), tokens=st.integers(1, 4000), sequence=st.integers(0, 10_000)
)


def test_the_known_policies_are_sglang_s_and_one_of_our_own() -> None:
    sglang = {"follow_bootstrap_room", "round_robin", "total_requests", "total_tokens"}
    assert set(POLICIES) == sglang | {"shortest_wait"}
    assert all(create(name).name == name for name in POLICIES)


@pytest.mark.parametrize("name", ["", "random", "Round_Robin"])
def test_an_unknown_policy_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="round_robin, total_requests") as caught:
        create(name)
    assert caught.value.field == "policy"


@given(request=requests, loads=loads, name=st.sampled_from(sorted(POLICIES)))
def test_a_choice_serves_and_is_repeatable(request: Request, loads: list[Load], name: str) -> None:
    policy = create(name)
    try:
        chosen = policy.choose(request, loads)
    except NoServingRank:
        assert not any(load.serving for load in loads) or name == "follow_bootstrap_room"
        return
    assert loads[chosen].serving
    assert policy.choose(request, list(loads)) == chosen


@given(request=requests, loads=loads)
def test_follow_bootstrap_room_is_what_decode_computes(request: Request, loads: list[Load]) -> None:
    computed = request.room % len(loads)
    policy = create("follow_bootstrap_room")
    if loads[computed].serving:
        assert policy.choose(request, loads) == computed
    else:
        with pytest.raises(NoServingRank):
            policy.choose(request, loads)


@given(loads=loads.filter(lambda some: any(load.serving for load in some)), start=st.integers(0, 1000))
def test_round_robin_gives_each_serving_rank_one_in_turn(loads: list[Load], start: int) -> None:
    serving = [dp_rank for dp_rank, load in enumerate(loads) if load.serving]
    turn = [create("round_robin").choose(Request(7, sequence=start + i), loads) for i in range(len(serving))]
    assert sorted(turn) == serving


@given(request=requests, loads=loads.filter(lambda some: any(load.serving for load in some)))
def test_total_requests_takes_a_rank_with_the_fewest(request: Request, loads: list[Load]) -> None:
    chosen = create("total_requests").choose(request, loads)
    assert loads[chosen].requests == min(load.requests for load in loads if load.serving)


@given(request=requests, loads=loads.filter(lambda some: any(load.serving for load in some)))
def test_total_tokens_takes_the_fewest_tokens_then_the_fewest_requests(request: Request, loads: list[Load]) -> None:
    chosen = loads[create("total_tokens").choose(request, loads)]
    assert (chosen.tokens, chosen.requests) == min((load.tokens, load.requests) for load in loads if load.serving)


@given(request=requests, loads=loads.filter(lambda some: any(load.serving for load in some)))
def test_shortest_wait_takes_the_shortest_queue_then_the_idler_rank(request: Request, loads: list[Load]) -> None:
    chosen = loads[create("shortest_wait").choose(request, loads)]
    best = min((load.waiting_tokens, load.tokens, load.requests) for load in loads if load.serving)
    assert (chosen.waiting_tokens, chosen.tokens, chosen.requests) == best


def test_shortest_wait_looks_past_what_is_being_computed() -> None:
    computing = [Load(2, 7000, waiting_tokens=0), Load(1, 3500, waiting_tokens=3500)]
    assert create("shortest_wait").choose(Request(0, 100), computing) == 0
    assert create("total_tokens").choose(Request(0, 100), computing) == 1


@given(request=requests, loads=loads, name=st.sampled_from(sorted(POLICIES)), named=st.integers(-2, 9))
def test_a_named_rank_wins_over_each_policy(request: Request, loads: list[Load], name: str, named: int) -> None:
    asked = Request(request.room, request.tokens, request.sequence, routed_dp_rank=named)
    if not 0 <= named < len(loads):
        with pytest.raises(ConfigError) as caught:
            create(name).choose(asked, loads)
        assert caught.value.field == "routed_dp_rank"
    elif loads[named].serving:
        assert create(name).choose(asked, loads) == named
    else:
        with pytest.raises(NoServingRank) as lost:
            create(name).choose(asked, loads)
        assert lost.value.dp_rank == named
