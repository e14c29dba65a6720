"""etcd reaches its quota and refuses writes, until docs/operations.md's Job has run."""

from __future__ import annotations

import pytest

from tests.support.waiting import wait_until

from .conftest import MakeRelease
from .kube import name
from .load import ETCD_LOST
from .release import ONE_ENGINE, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(900)]

#: Run in a prefill agent's container, as its user: history and an unreadable room, until etcd refuses it.
FILL = """
import asyncio, click
from etcd_pd.cli.options import settings_options
from etcd_pd.config import EtcdSettings
from etcd_pd.core.keys import Keys
from etcd_pd.core.records import Put
from etcd_pd.errors import StoreBusy
from etcd_pd.store.admin import EtcdAdmin

async def write(settings, root):
    async with EtcdAdmin(settings) as store:
        for _ in range(1000):
            await store.txn([], [Put(Keys(root).room("nobody", 7), bytes(1 << 18), 0)])

@click.command()
@settings_options("settings", EtcdSettings)
@click.option("--root", envvar="ETCD_PD_ROOT", required=True)
def fill(settings, root):
    try:
        asyncio.run(write(settings, root))
    except StoreBusy as exc:
        print(exc)

fill()
"""


def alarms(release: Release) -> set[str]:
    """The alarms that members of etcd have raised."""
    return {each["alarm"] for each in release.status()["etcd"]["alarms"]}


def test_requests_end_in_time_and_come_right_when_etcd_was_full_and_is_defragmented(make_release: MakeRelease) -> None:
    small = {**ONE_ENGINE, "etcd": {"quota": "16Mi"}}
    with make_release("full").installed(small) as release:
        with release.load() as load:
            prefill = name(release.fleet("prefill")[0])
            assert "space" in release.kube.execute(prefill, "agent", "python3", "-c", FILL)
            assert alarms(release) == {"NOSPACE"}
            wait_until(
                lambda: any(each.status >= 500 for _, each in list(load.answers)),
                "a request is refused",
                STEP_SECONDS,
                every=0.5,
            )
            release.follow_guide("Out of space")
            assert alarms(release) == set()
        assert load.wrong(ETCD_LOST) == []
        with release.load() as load:
            wait_until(lambda: len(load.answers) > 20, "requests end", STEP_SECONDS, every=0.5)
        assert load.wrong() == []
