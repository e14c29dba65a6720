"""Tokens follow from logits, seed and position alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings, strategies as st

from etcd_pd.reference.engine.messages import Sampling
from etcd_pd.reference.engine.sampling import choose, logprob, margin

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]))


def test_greedy_takes_the_largest() -> None:
    assert choose(LOGITS.flip(0), Sampling(), seed=0, position=0) == 4


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 10_000))
def test_the_same_seed_and_position_give_the_same_token(seed: int, position: int) -> None:
    sampling = Sampling(temperature=1.3, top_p=0.9)
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 1e-7
    logits = torch.randn(50, generator=torch.Generator().manual_seed(2)).double()
    assert choose(logits, sampling, seed, position) == choose(logits.clone(), sampling, seed, position)
    assert 0 <= choose(logits + noise, sampling, seed, position) < 50


def test_positions_and_seeds_draw_differently() -> None:
    sampling = Sampling(temperature=1.0)
    by_position = {choose(torch.zeros(1000), sampling, 1, position) for position in range(50)}
    by_seed = {choose(torch.zeros(1000), sampling, seed, 0) for seed in range(50)}
    assert len(by_position) > 40
    assert len(by_seed) > 40


def test_frequencies_are_the_probabilities() -> None:
    counts = Counter(choose(LOGITS, Sampling(temperature=1.0), 7, position) for position in range(4000))
    for token, expected in enumerate(LOGITS.exp().tolist()):
        assert counts[token] / 4000 == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, top_p=0.5), {0}),
        (Sampling(temperature=1.0, top_p=0.51), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.01), {0}),
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_k=1), {0}),
        (Sampling(temperature=0.001), {0}),
        (Sampling(temperature=1.0), {0, 1, 2, 3, 4}),
    ],
)
def test_top_p_top_k_and_temperature_narrow_the_choice(sampling: Sampling, allowed: set[int]) -> None:
    assert {choose(LOGITS, sampling, 3, position) for position in range(1000)} == allowed


def test_logprob_and_margin() -> None:
    assert logprob(LOGITS, 1) == pytest.approx(-1.386294, abs=1e-5)
    assert margin(LOGITS) == pytest.approx(0.693147, abs=1e-5)
