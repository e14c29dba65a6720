"""``etcd-pd etcd-member``."""

from __future__ import annotations

import asyncio

import click

from ..kubernetes.settings import MemberSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command("etcd-member")
@settings_options("settings", MemberSettings)
@settings_options("logs", LogSettings)
def etcd_member(settings: MemberSettings, logs: LogSettings) -> None:
    """Write the configuration file with which etcd starts on this node.

    Before etcd: it finds out whether this member is new, starts again, or joins again because its volume was lost.
    """
    configure(logs)
    from ..kubernetes.member import prepare

    asyncio.run(prepare(settings))
