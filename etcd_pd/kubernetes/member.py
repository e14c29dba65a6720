"""``etcd-pd etcd-member``: before etcd starts, decide whether this member is new, starts again, or has lost its volume.

An etcd that starts with an empty volume under an old member's name would vote as that member, having forgotten what it
voted for before: writes could be lost. So once the cluster was formed, which a file says, an empty volume always means
to leave and to join again as somebody new, and never to start a cluster: that would be without roles, and pass for the
old one. Whoever has lost every volume asks for a new cluster by a new generation (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from pathlib import Path

from ..config import EtcdSettings
from ..errors import EtcdPDError, StoreError, StoreRejected
from ..store.admin import EtcdAdmin, Member, connect, without_user
from .guards import SNAPSHOT_COUNT, check_cluster, check_generation, check_log, check_version
from .settings import MemberSettings

log = logging.getLogger(__name__)

NEW, EXISTING = "new", "existing"
#: What a directory is called that etcd cannot start from, before the time when that was found.
UNUSABLE = "member.without-wal"
#: Pause between attempts, seconds: as long as etcd wants members to be connected before it lets another one in.
PAUSE_SECONDS = 1.0


_LOST = "the cluster was formed before; if every volume is lost, a new one needs a new etcd.generation"


class ClusterLost(EtcdPDError):
    """The only member has lost its volume, and with it the roles: a person must ask for a new cluster."""


class MembersDiffer(EtcdPDError):
    """The running cluster is not the configured one: a number of members that changed, for example."""


async def prepare(settings: MemberSettings) -> str:
    """Write etcd's configuration file; ``new`` or ``existing``, as it says there.

    Raises:
        StoreError: the other members did not answer in time.
        ClusterLost: there are none, and the cluster was formed before.
        MembersDiffer: the running cluster has other members than the configured ones.
        OlderGeneration, OlderEtcd, AnotherCluster, UnreadableLog: as their checks say.
    """
    check_generation(Path(settings.data_dir))
    data, old_log = Path(settings.data_dir) / "member", False
    if _has_log(data):
        if settings.others:
            await check_version(settings.etcd_version, settings.others)
        old_log = check_log(settings.etcd_version, data / "wal")
        state, why = EXISTING, "its data is here"
    elif settings.others is None:
        if _formed(settings):
            raise ClusterLost(_LOST)
        state, why = NEW, "it is the only one"
    else:
        state, why = await _join(settings, settings.others)
    log.info("member=%s state=%s: %s", settings.member, state, why)
    _write(settings, state, old_log)
    return state


def _has_log(data: Path) -> bool:
    """Whether etcd can start from what is there. What it cannot start from is put aside, or it would not start at all.

    A database without a write-ahead log is what a full disk leaves of a first start.
    """
    try:
        if any(name.endswith(".wal") for name in os.listdir(data / "wal")):
            return True
    except FileNotFoundError:
        pass  # any other error is one: what cannot be looked at may well be a log
    if data.is_dir():
        aside = data.rename(data.with_name(f"{UNUSABLE}-{time.time():.0f}"))
        log.warning("%s has no write-ahead log: etcd cannot start from it, so it is now %s", data, aside)
    return False


async def _join(settings: MemberSettings, etcd: EtcdSettings) -> tuple[str, str]:
    deadline = time.monotonic() + settings.wait_seconds
    while True:
        try:
            return await _ask(settings, etcd)
        except StoreError as exc:
            if time.monotonic() >= deadline:
                raise
            log.info("member=%s waits: %s", settings.member, exc)
            await asyncio.sleep(PAUSE_SECONDS)


async def _ask(settings: MemberSettings, etcd: EtcdSettings) -> tuple[str, str]:
    """One attempt at a decision.

    Raises:
        StoreError: none can be taken yet.
    """
    async with EtcdAdmin(without_user(etcd)) as admin:
        try:
            await admin.knows_members()
        except StoreRejected:
            pass  # it answers, but not to nobody
        except StoreError as exc:
            if _formed(settings):
                raise StoreError("member list", f"{exc}; {_LOST}") from exc
            return NEW, "no cluster was formed before, and no other member answers"
    await check_version(settings.etcd_version, etcd)
    admin, _ = await connect(etcd)
    async with admin:
        return await _rejoin(settings, admin)


async def _rejoin(settings: MemberSettings, admin: EtcdAdmin) -> tuple[str, str]:
    members = await admin.members()
    check_cluster(settings.formed_file, await admin.cluster_id())
    _check(settings, members)
    own = next((member for member in members if settings.peer_url in member.peer_urls), None)
    if own and not own.started:
        return EXISTING, "it was let in and has not started yet"
    if own:
        log.warning("member=%s lost its volume: removing id=%x, joining again", settings.member, own.id)
        await admin.remove_member(own.id)
    await admin.add_member(settings.peer_url)
    return EXISTING, "it was let in again" if own else "it was let in"


def _formed(settings: MemberSettings) -> bool:
    return bool(settings.formed_file) and os.path.exists(settings.formed_file)


def _check(settings: MemberSettings, members: list[Member]) -> None:
    strangers = {url for member in members for url in member.peer_urls} - set(settings.peers.values())
    if strangers:
        raise MembersDiffer(f"etcd has members at {', '.join(sorted(strangers))}, which are not configured")


def _write(settings: MemberSettings, state: str, old_log: bool) -> None:
    """The base with this member's own lines: beside a file, etcd reads neither flags nor environment.

    A member whose log is of etcd 3.5 takes a snapshot soon, if the base does not say when: then etcd 3.7 can start.
    """
    own = {
        "name": settings.member,
        "initial-advertise-peer-urls": settings.peer_url,
        "advertise-client-urls": settings.client_url,
        "initial-cluster": ",".join(settings.initial_cluster),
        "initial-cluster-state": state,
    }
    base = Path(settings.config_base).read_text()
    if old_log and not re.search("^snapshot-count:", base, re.MULTILINE):
        log.info("member=%s takes a snapshot after %d entries: its log is of etcd 3.5", settings.member, SNAPSHOT_COUNT)
        own["snapshot-count"] = str(SNAPSHOT_COUNT)
    lines = "".join(f"{key}: {value}\n" for key, value in own.items())
    Path(settings.config_file).write_text(f"{base.rstrip()}\n{lines}")
