"""``etcd-pd etcd-defragment``."""

from __future__ import annotations

import asyncio

import click

from ..config import EtcdSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command("etcd-defragment")
@settings_options("settings", EtcdSettings)
@settings_options("logs", LogSettings)
def etcd_defragment(settings: EtcdSettings, logs: LogSettings) -> None:
    """Give back the space that etcd's database does not use, and end its alarm NOSPACE.

    As etcd's root, where users and roles hold. It compacts to the present revision, defragments one member after the
    other, the leader last, and takes the alarm back. A member answers nobody meanwhile; the alarm CORRUPT stays.

    \b
      etcd-pd etcd-defragment --etcd https://etcd-0:2379,https://etcd-1:2379 --etcd-cert-file root.crt ...
    """
    configure(logs)
    from ..kubernetes.defragment import defragment

    asyncio.run(defragment(settings))
