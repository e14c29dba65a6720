"""``etcd-pd etcd-defragment``: makes etcd's database as small as what it holds, and ends the alarm that it was full.

etcd refuses every write once its file has reached the quota, and goes on doing so when there is space again, until
somebody takes the alarm back. History is compacted first: a file that is full of it has no free pages to give up.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ..config import EtcdSettings
from ..errors import StoreError, StoreUnavailable
from ..store.admin import EtcdAdmin, Member, connect, without_user

log = logging.getLogger(__name__)

#: The only alarm that space ends.
NOSPACE = "NOSPACE"


async def defragment(settings: EtcdSettings) -> None:
    """Compact, defragment one member after the other, the leader last, and take NOSPACE back.

    A member answers nobody while it is defragmented; what is asked of etcd meanwhile goes to the others.

    Args:
        settings: how to reach etcd, as root where users and roles hold.

    Raises:
        StoreError: a member did not answer or refused; the others were defragmented all the same.
    """
    admin, enabled = await connect(settings)
    user = settings if enabled else without_user(settings)
    failed: StoreError | None = None
    async with admin:
        await admin.compact()
        for member in await _leader_last(admin):
            try:
                await _defragment(user, member)
            except StoreError as exc:
                # its words alone: who keeps records would keep the connection with the traceback
                log.warning("member=%s was not defragmented: %s", member.name, str(exc))
                failed = exc
        for id, alarm in await admin.alarms():
            if alarm == NOSPACE:
                await admin.disarm_nospace(id)
                log.info("alarm=%s member=%x was taken back", alarm, id)
    if failed:
        raise failed


async def _leader_last(admin: EtcdAdmin) -> list[Member]:
    leader = (await admin.status()).leader
    return sorted(await admin.members(), key=lambda member: member.id == leader)


async def _defragment(settings: EtcdSettings, member: Member) -> None:
    if not member.started:
        raise StoreUnavailable("defragment", "it never started")
    async with EtcdAdmin(replace(settings, endpoints=member.client_urls[:1])) as admin:
        before = (await admin.status()).db_size
        await admin.defragment()
        log.info("member=%s has %d bytes, %d before", member.name, (await admin.status()).db_size, before)
