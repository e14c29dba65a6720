"""``etcd-pd gateway``."""

from __future__ import annotations

import click

from ..sglang.gateway.settings import GatewaySettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command()
@settings_options("settings", GatewaySettings)
@settings_options("logs", LogSettings)
def gateway(settings: GatewaySettings, logs: LogSettings) -> None:
    """Serve SGLang's bootstrap protocol over HTTP for one prefill instance.

    For engines without the plug-in. Start it before the engine, beside it, on the engine's own host and bootstrap
    port: the engine then finds the port taken, logs one error, goes on, and registers here.

    \b
      etcd-pd gateway --instance prefill-0 --listen 10.0.0.7:8998
    """
    configure(logs)
    from ..sglang.gateway import main

    raise SystemExit(main.run(settings))
