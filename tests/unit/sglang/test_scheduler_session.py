"""The SGLang plug-in's session, without SGLang."""

from __future__ import annotations

import fcntl
import os
import resource
import time
from pathlib import Path

import pytest

from etcd_pd.sglang.decode import DecodeSide
from etcd_pd.sglang.prefill import PrefillSide
from etcd_pd.sglang.scheduler_session import Session


def test_waiting_ends_when_the_process_has_more_descriptors_than_select_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_PD_SOCKET", str(tmp_path / "agent.sock"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD, 1500)
    session = Session(PrefillSide, DecodeSide)
    try:
        monkeypatch.setattr(session.client, "fileno", lambda: high)
        began = time.monotonic()
        session.wait(0.05)
        assert time.monotonic() - began >= 0.04, "nothing came"
        os.write(writing, b"x")
        session.wait(600.0)
    finally:
        for descriptor in (reading, writing, high):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        session.client.close()
