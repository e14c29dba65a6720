"""An installation as its owner sees it, and fleets that restart and die under load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

from .kube import name
from .load import ENGINE_LOST
from .provider import run
from .release import STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.quick, pytest.mark.timeout(1800)]


def test_helm_test_succeeds_when_the_release_is_ready(release: Release) -> None:
    said = release.kube.helm("test", release.name, "--logs", seconds=300)
    assert "rooms registered with one certificate and resolved with the other" in said
    assert "a request through the router: 8 tokens" in said


def test_the_notes_commands_run_as_printed_when_pasted_into_a_shell(release: Release, tmp_path: Path) -> None:
    notes = release.kube.helm("get", "notes", release.name)
    # commands are what is indented; helm test ran above
    commands = re.findall(r"^  ((?:kubectl|curl) (?:[^\n\\]|\\\n)*)$", notes, re.MULTILINE)
    assert len(commands) >= 5, notes
    script = "\n".join(commands).replace("&\n", ">/dev/null &\ntrap 'kill $!' EXIT\nsleep 3\n")
    said = run(["bash", "-euo", "pipefail", "-c", script], 300, {**release.kube.environ, "HOME": str(tmp_path)})
    assert "output_ids" in said
    assert "session lease granted" in said


def test_nothing_is_wrong_when_the_guides_first_commands_run_on_a_new_release(release: Release) -> None:
    said = release.follow_guide("Looking first")
    assert "nothing is wrong" in said
    assert "session lease granted" in said


def test_requests_are_right_while_both_fleets_restart(release: Release) -> None:
    with release.load() as load:
        for role in ("prefill", "decode"):
            release.kube.kubectl("rollout", "restart", f"deployment/{release.full}-{role}")
        release.await_ready()
    assert load.wrong() == []


def test_requests_end_in_time_and_the_engine_starts_again_when_its_rank_is_killed(release: Release) -> None:
    victim = name(release.fleet("decode")[0])  # of one rank; an instance with others left goes on with those
    restarts = release.restarts(victim, "engine")
    with release.load() as load:
        release.kill_rank(victim)
        wait_until(lambda: release.restarts(victim, "engine") > restarts, "it starts again", STEP_SECONDS, every=0.5)
        release.await_ready()
    assert load.wrong(ENGINE_LOST) == []


def test_requests_are_right_when_etcds_leader_is_deleted(release: Release) -> None:
    leader = next(each["name"] for each in release.status()["etcd"]["members"] if each["leader"])
    with release.load() as load:
        release.kube.kubectl("delete", "pod", leader, "--force", "--grace-period=0")
        release.await_ready()
    assert load.wrong() == []
