"""What etcd says of its own health, asked now and then for those who scrape: alarms, and the size of its database."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter

from ..core.records import UPGRADE, MemberStatus, is_outdated
from ..errors import StoreError, StoreRejected
from ..store.base import Store, roles_hold

log = logging.getLogger(__name__)

#: Time between two looks, seconds; jittered, so that the agents of a cell do not ask together.
LOOK_SECONDS = 30.0
#: The same after etcd did not answer: what it says is missed until it does.
RETRY_SECONDS = 2.0
#: Every alarm that etcd knows.
ALARMS = ("NOSPACE", "CORRUPT")


class EtcdHealth:
    """Looks at etcd's health, as far as these credentials may.

    A member's status is asked first: it is answered by one member from its memory, alarms included. With
    authentication on, etcd 3.5.28 to 3.5.31 keep it for root; from 3.5.29 on the list of alarms may still be asked,
    at the price of an entry in etcd's log.

    Args:
        store: etcd.

    Attributes:
        alarms: how many members raised each alarm; None while that is not known.
        status: what the member in use says of itself; None while that is not known.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reported_refusal = False
        self._known_version = ""
        self.alarms: Counter[str] | None = None
        self.status: MemberStatus | None = None

    async def run(self, reached: asyncio.Event) -> None:
        """Look once etcd was reached, and then for ever, until cancelled."""
        await reached.wait()
        while True:
            pause = LOOK_SECONDS if await self.look() else RETRY_SECONDS
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    async def look(self) -> bool:
        """Ask now; whether etcd answered. What it did not say is unknown then; others notice where etcd is gone."""
        before, answered = self.alarms or Counter(), True
        try:
            self.status, self.alarms = await self._ask()
        except StoreRejected as exc:
            self.status = self.alarms = None
            if not self._reported_refusal:
                log.info("etcd's alarms and size are not for this agent to see: %s", exc)
            self._reported_refusal = True
        except StoreError:
            self.status = self.alarms = None
            answered = False
        await self._check_version()
        for name in (self.alarms or Counter()) - before:
            log.error("etcd raised its alarm %s: see EtcdPdAlarm in the runbook", name)
        return answered

    async def _check_version(self) -> None:
        """Warn of an etcd whose roles do not hold, once a version."""
        if not self.status or self.status.version == self._known_version:
            return
        hold = await roles_hold(self._store) if is_outdated(self.status.version) else False
        if hold is None:
            return
        if hold:
            log.warning("roles of etcd %s can be passed by: %s", self.status.version, UPGRADE)
        self._known_version = self.status.version

    async def _ask(self) -> tuple[MemberStatus | None, Counter[str]]:
        try:
            status = await self._store.status()
        except StoreRejected:
            return None, Counter(name for _, name in await self._store.alarms())
        return status, Counter(status.alarms)
