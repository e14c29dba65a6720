"""What errors say."""

from __future__ import annotations

from etcd_pd.errors import PrefillLost


def test_no_number_that_means_none_is_shown_when_a_whole_instance_is_lost() -> None:
    assert str(PrefillLost("p", 7, -1, 0)).endswith("the prefill instance is gone")
    assert str(PrefillLost("p", 7, 2, 5)).endswith("the prefill dp_rank 2 (epoch 5) is gone")
