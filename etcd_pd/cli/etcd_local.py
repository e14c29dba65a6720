"""``etcd-pd etcd``."""

from __future__ import annotations

import asyncio
import os

import click

from ..reference.local.embedded import EmbeddedEtcd
from ..reference.local.local_cell import LocalCell, claim_local_cell
from .stopping import run_until_stopped

#: How often it looks whether etcd still runs.
_LOOK_SECONDS = 0.3


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=2379,
    show_default=True,
    envvar="ETCD_PD_ETCD_PORT",
    show_envvar=True,
    help="etcd's port on loopback, where every command looks unless set otherwise; 0: a free one",
)
def etcd(port: int) -> None:
    """Start just an etcd on this machine, for development.

    One member on loopback, until Ctrl-C; what it holds is gone then. The commands that look into a cell find it by
    themselves.

    \b
      etcd-pd etcd
      etcd-pd run -- bash     in another terminal: a shell with an agent beside it
    """
    run_until_stopped(_serve(port))


async def _serve(port: int) -> None:
    with claim_local_cell("etcd-pd etcd") as publish, EmbeddedEtcd.start(port=port) as server:
        publish(LocalCell("etcd-pd etcd", os.getpid(), (server.endpoint,)))
        if server.warning:
            click.echo(server.warning, err=True)
        click.echo(f"etcd {server.version} at {server.endpoint}; Ctrl-C ends it, and what it holds is gone")
        while True:
            server.process.check()
            await asyncio.sleep(_LOOK_SECONDS)
