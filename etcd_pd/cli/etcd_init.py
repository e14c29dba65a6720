"""``etcd-pd etcd-init``."""

from __future__ import annotations

import asyncio

import click

from ..kubernetes.settings import InitSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command("etcd-init")
@settings_options("settings", InitSettings)
@settings_options("logs", LogSettings)
def etcd_init(settings: InitSettings, logs: LogSettings) -> None:
    """Make the roles and users of a cell in etcd.

    As etcd's root. It waits for a quorum, makes what is missing, and enables authentication last; it may run at any
    time. Decode agents can write no room then, nor end a prefill agent's lease.

    \b
      etcd-pd etcd-init --etcd https://etcd:2379 --root /etcd_pd/llama-70b
      etcd-pd etcd-init --instances prefill-0,prefill-1     a user for each, which may write its own keys alone
    """
    configure(logs)
    from ..kubernetes.roles import initialize

    asyncio.run(initialize(settings))
