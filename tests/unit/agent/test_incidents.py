"""One line for a room that went wrong, and not one for each of a thousand."""

from __future__ import annotations

import pytest

from etcd_pd.agent.incidents import QUIET_SECONDS, Incidents


def test_a_line_names_room_instance_rank_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    Incidents().note("RoomFailed", 7, "prefill-0", 3, "out of memory")
    Incidents().note("InstanceUnknown", 8, "prefill-9", None, "")
    assert [record.getMessage() for record in caplog.records] == [
        "RoomFailed room=7 instance=prefill-0 dp_rank=3: out of memory",
        "InstanceUnknown room=8 instance=prefill-9 dp_rank=unknown",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_many_of_a_kind_are_counted_and_others_are_seen_when_they_come_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    incidents = Incidents(lambda: now[0])
    for room in range(1000):
        incidents.note("PrefillLost", room, "prefill-0", 1, "")
    incidents.note("RoomConflict", 7, "prefill-0", 1, "taken")
    now[0] += QUIET_SECONDS
    incidents.note("PrefillLost", 1000, "prefill-0", 1, "")
    assert [record.getMessage() for record in caplog.records] == [
        "PrefillLost room=0 instance=prefill-0 dp_rank=1",
        "RoomConflict room=7 instance=prefill-0 dp_rank=1: taken",
        "PrefillLost room=1000 instance=prefill-0 dp_rank=1 (and 999 more since the last such line)",
    ]
