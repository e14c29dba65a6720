"""``etcd-pd etcd-init``: the cell's roles and users, then authentication, then word that the cluster is formed.

It may run at any time and any number of times; authentication comes last, when whoever needs a role has one.
"""

from __future__ import annotations

import asyncio
import logging
import time

from ..core.keys import Keys
from ..errors import EtcdPDError, StoreError
from ..store.admin import EtcdAdmin, connect
from .api import Kubernetes
from .formed import say_formed
from .settings import ROOT, InitSettings

log = logging.getLogger(__name__)

#: How often to say that etcd is still waited for, seconds.
PAUSE_SECONDS = 2.0


class UserOfAnotherCell(EtcdPDError):
    """A user has a role in another cell of this etcd: with one more in this cell it could write in both."""


async def initialize(settings: InitSettings) -> None:
    """Do all of it.

    Raises:
        StoreError: etcd did not answer in time, or refuses.
        UserOfAnotherCell: of an etcd that cells share.
        KubernetesError: the ConfigMap cannot be written, or its owner is not there.
    """
    admin, enabled = await _connect(settings)
    async with admin:
        cluster_id = await admin.cluster_id()  # once users hold, nobody without one may ask
        if settings.roles:
            await _Reconciler(settings, admin, enabled).run()
    if settings.formed_config_map:
        say_formed(settings, Kubernetes(settings.namespace), cluster_id)


async def _connect(settings: InitSettings) -> tuple[EtcdAdmin, bool]:
    """A connection as root, once a quorum answers, and whether authentication is on."""
    deadline = time.monotonic() + settings.wait_seconds
    while True:
        try:
            return await connect(settings.etcd)
        except StoreError as exc:
            if time.monotonic() >= deadline:
                raise
            log.info("waiting for etcd: %s", exc)
            await asyncio.sleep(PAUSE_SECONDS)


class _Reconciler:
    def __init__(self, settings: InitSettings, admin: EtcdAdmin, enabled: bool) -> None:
        self._settings, self._admin, self._enabled = settings, admin, enabled
        self._keys = Keys(settings.root)

    async def run(self) -> None:
        settings, prefix = self._settings, self._keys.prefix
        prefill, decode = f"prefill@{settings.root}", f"decode@{settings.root}"
        if not settings.formed_config_map:  # an etcd of the chart's own serves one cell, whose root may change
            for user in (settings.prefill_user, settings.decode_user):
                await self._refuse_others(user)
        await self._role(prefill, [prefix + kind for kind in (b"prefill/", b"rooms/", b"agents/")])
        await self._role(decode, [prefix + kind for kind in (b"decode/", b"agents/")])
        await self._user(settings.prefill_user, settings.prefill_password, prefill)
        await self._user(settings.decode_user, settings.decode_password, decode)
        for instance in settings.instances:
            role, own = f"{prefill}/{instance}", self._keys.prefill(instance)
            await self._role(role, [own + b"/", self._keys.rooms(instance), self._keys.agent("")])
            # as one key: as a prefix it would hold the keys of NAME-2 too
            await self._admin.permit(role, own, write=True, prefix=False)
            await self._user(instance, "", role)
        if not self._enabled:
            await self._admin.add_role(ROOT)
            await self._user(ROOT, settings.root_password, ROOT)
            await self._admin.enable_auth()
            log.info("authentication is enabled")

    async def _refuse_others(self, user: str) -> None:
        cells = {role.partition("@")[2] for role in await self._admin.roles_of(user) if "@" in role}
        if others := sorted(cells - {self._settings.root}):
            raise UserOfAnotherCell(
                f"user {user} has roles in {', '.join(others)} too: give this cell users and certificates of its own "
                "(auth.users), or revoke those roles"
            )

    async def _role(self, role: str, writable: list[bytes]) -> None:
        await self._admin.add_role(role)
        await self._admin.permit(role, self._keys.prefix, write=False)
        for prefix in writable:
            await self._admin.permit(role, prefix, write=True)
        log.info("role=%s writes %s", role, " ".join(prefix.decode() for prefix in writable))

    async def _user(self, user: str, password: str, role: str) -> None:
        if password and not (self._enabled and await self._admin.password_holds(user, password)):
            await self._admin.delete_user(user)
        await self._admin.add_user(user, password)
        await self._admin.grant_role(user, role)
        log.info("user=%s role=%s", user, role)
