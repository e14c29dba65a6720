"""etcd's members: where they are found beside the endpoints given, and which of them this agent talks to."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

from ..config import EtcdSettings
from ..core.keys import prefix_end
from ..core.placement import place
from ..errors import StoreError
from . import etcdrpc as rpc
from .calls import Calls
from .connections import Connection

log = logging.getLogger(__name__)

#: How long a URL is left alone that never answered: what members advertise is often out of reach from elsewhere.
LEFT_ALONE_SECONDS = 300.0


class Members:
    """Spreads those who have keys under a prefix over the members, and learns where these are.

    A URL is used only if a member of the same cluster answers there, and with TLS only where the others have it.
    """

    def __init__(self, settings: EtcdSettings, calls: Calls) -> None:
        self._settings, self._calls = settings, calls
        self._ids: dict[str, int] = {}  # of the members that answered, by URL
        self._cluster = 0
        self._key = b""
        self._left_alone: dict[str, float] = {}
        calls.connections.verify = self._is_member

    async def settle(self, prefix: bytes, key: bytes) -> None:
        """Go to the member that is this key's among all keys under the prefix, where it answers.

        Raises:
            StoreError: etcd did not say who there is.
        """
        connection = await self._calls.connections.use()
        listed = await self._calls.call_on(connection, "settle", "Cluster", "MemberList", rpc.MemberListRequest())
        members = {member.ID: member for member in listed.members if member.clientURLs and not member.isLearner}
        if len(members) < 2:
            return
        keys = rpc.RangeRequest(key=prefix, range_end=prefix_end(prefix), keys_only=True)
        found = await self._calls.call_on(connection, "settle", "KV", "Range", keys)
        agents = {kv.key for kv in found.kvs}
        if key not in agents:
            return
        self._key, self._cluster = key, found.header.cluster_id
        here, wanted = found.header.member_id, place(agents, sorted(members))[key]
        self._ids[connection.endpoint] = here
        for url in self._urls(members, wanted if wanted != here else 0):
            if await self._try(url, wanted):
                return

    def _urls(self, members: dict[int, Any], wanted: int) -> list[str]:
        """Where to try: the wanted member, at endpoints given if possible; and whatever was not tried yet."""
        others = members.keys() - {wanted}
        given = [url for url in self._settings.endpoints if wanted and self._ids.get(url) not in others]
        scheme = urlsplit(self._settings.endpoints[0]).scheme
        advertised = {
            url.rstrip("/"): id
            for id, member in members.items()
            for url in member.clientURLs
            if urlsplit(url).scheme == scheme and url.rstrip("/") not in self._settings.endpoints
        }
        self._calls.connections.learned = [url for url in advertised if url in self._ids]
        now = time.monotonic()
        learned = [
            url
            for url, id in advertised.items()
            if (id == wanted if url in self._ids else now >= self._left_alone.get(url, now))
        ]
        return [*given, *learned]

    async def _try(self, url: str, wanted: int) -> bool:
        """See who answers at a URL; whether this is the wanted member, to whom to go then."""
        connections = self._calls.connections
        try:
            connection = await connections.connect(url)
        except StoreError as exc:
            log.debug("cannot connect to %s: %s", url, exc)
            return False
        if not await self._is_member(connection):
            if url not in self._ids:
                self._left_alone[url] = time.monotonic() + LEFT_ALONE_SECONDS
        elif self._ids[url] == wanted:
            log.info("etcd endpoint=%s is this agent's among the members, in place of %s", url, connections.endpoint)
            connections.move(connection)
            return True
        elif url not in (*self._settings.endpoints, *connections.learned):
            connections.learned.append(url)
        await connection.close()
        return False

    async def _is_member(self, connection: Connection) -> bool:
        """Whether a member of the same cluster answers, which has a leader."""
        try:
            found = await self._calls.call_on(connection, "settle", "KV", "Range", rpc.RangeRequest(key=self._key))
        except StoreError as exc:
            log.debug("no member at %s: %s", connection.endpoint, exc)
            return False
        if found.header.cluster_id != self._cluster:
            log.warning("%s is another etcd than this cell's: it is not used", connection.endpoint)
            self._ids.pop(connection.endpoint, None)
            return False
        self._ids[connection.endpoint] = found.header.member_id
        return True
