"""What etcd's members say of themselves, as plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, StoreError, StoreRejected

if TYPE_CHECKING:
    from ..config import EtcdSettings
    from ..core.records import MemberStatus
    from ..store.admin import EtcdAdmin, Member

_T = TypeVar("_T")


async def describe_etcd(store: EtcdAdmin, settings: EtcdSettings) -> dict[str, Any]:
    """Members with leader, version and size, alarms, and how many leases there are; None where that is not allowed."""
    members, cluster_id, alarms, leases = await asyncio.gather(
        store.members(), store.cluster_id(), _if_allowed(store.alarms()), _if_allowed(store.leases())
    )
    statuses = await ask_members(settings, members)
    names = {member.id: member.name for member in members}
    return {
        "cluster_id": f"{cluster_id:x}",
        "revision": max((found.revision for found in statuses.values() if not isinstance(found, str)), default=0),
        "members": [_member(member, statuses.get(member.id, "not asked")) for member in members],
        "alarms": alarms and [{"member": names.get(id, f"{id:x}"), "alarm": alarm} for id, alarm in alarms],
        "leases": None if leases is None else len(leases),
    }


async def ask_members(settings: EtcdSettings, members: list[Member]) -> dict[int, MemberStatus | str]:
    """What each member says, by its id, or why it could not be asked.

    First the endpoints given, then whoever did not answer there, at the URLs that it advertises.
    """
    found: dict[int, MemberStatus | str] = {}
    for answer in await asyncio.gather(*(ask(settings, endpoint) for endpoint in settings.endpoints)):
        if not isinstance(answer, str):
            found[answer.id] = answer
    others = [member for member in members if member.id not in found]
    for member, answer in zip(others, await asyncio.gather(*(_ask_any(settings, m) for m in others)), strict=True):
        found[member.id] = answer
    return found


async def ask(settings: EtcdSettings, endpoint: str) -> MemberStatus | str:
    """What the member at one endpoint says of itself, or why it could not be asked."""
    from ..store.one_member import ask_one

    try:
        return await asyncio.to_thread(ask_one, settings, endpoint)
    except (StoreError, ConfigError) as exc:
        return str(exc)


async def _ask_any(settings: EtcdSettings, member: Member) -> MemberStatus | str:
    answer: MemberStatus | str = "never started"
    for url in member.client_urls:
        answer = await ask(settings, url)
        if not isinstance(answer, str):
            break
    return answer


async def _if_allowed(asked: Awaitable[_T]) -> _T | None:
    """The answer; None where these credentials may not ask."""
    try:
        return await asked
    except StoreRejected:
        return None


def _member(member: Member, status: MemberStatus | str) -> dict[str, Any]:
    known = {"id": f"{member.id:x}", "name": member.name, "client_urls": list(member.client_urls)}
    if isinstance(status, str):
        return {**known, "error": status}
    return {
        **known,
        "leader": status.leader == member.id,
        "learner": status.is_learner,
        "version": status.version,
        "db_size_bytes": status.db_size,
        "db_size_in_use_bytes": status.db_size_in_use,
        "raft_term": status.raft_term,
        "revision": status.revision,
    }
