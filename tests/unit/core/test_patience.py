"""How long a claim waits: as long as elections renew a dead process's lease, and not for a living one."""

from __future__ import annotations

import pytest

from etcd_pd.core.patience import LOOK_SECONDS, Patience
from etcd_pd.core.records import LeaseTimes

TTL = 5


def waited(patience: Patience, left_at: dict[float, int], granted: int = TTL, limit: float = 60.0) -> float:
    """How long it waits where the lease is seen with so much left at those times, and in full at all others."""
    now = 0.0
    while now < limit and not patience.has_ended(now, TTL):
        if patience.wants_look(now):
            patience.note(LeaseTimes(left_at.get(now, granted), granted))
        now += LOOK_SECONDS
    return now


def test_a_claim_gives_up_when_the_other_session_is_kept_alive() -> None:
    assert waited(Patience(), {2.0: 4, 4.0: 3}) == 2 * TTL + 1


def test_a_claim_waits_on_when_the_other_lease_was_seen_running_out() -> None:
    patience = Patience()
    assert waited(patience, {3.0: 2, 9.0: 1}) == pytest.approx(9.0 + LOOK_SECONDS + 2 * TTL + 1)


def test_a_claim_waits_for_as_long_as_the_other_lease_may_last_when_that_is_longer_than_its_own() -> None:
    """As one that a restored etcd has anew, and that nobody renews."""
    assert waited(Patience(), {float(at): 30 - at for at in range(14)}, granted=30, limit=120.0) == 2 * 30 + 1


@pytest.mark.parametrize("another", [LeaseTimes(0, 0), LeaseTimes(4, 5)])
def test_the_wait_begins_anew_when_a_long_lease_has_gone_and_another_is_in_the_way(another: LeaseTimes) -> None:
    patience = Patience()
    for second in range(20):
        patience.note(LeaseTimes(50, 60))
        assert not patience.has_ended(second, TTL)
    patience.note(another)
    assert not patience.has_ended(20, TTL)


def test_the_wait_begins_anew_when_nothing_stood_in_the_way_meanwhile() -> None:
    patience = Patience()
    assert not patience.has_ended(0.0, TTL)
    patience.reset()
    assert not patience.has_ended(2 * TTL + 1, TTL)


def test_the_lease_is_looked_at_now_and_then_when_asked_often() -> None:
    patience = Patience()
    assert sum(patience.wants_look(step / 100) for step in range(100)) == 2
