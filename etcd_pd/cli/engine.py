"""``etcd-pd prefill`` and ``etcd-pd decode``: the reference engine."""

from __future__ import annotations

import click

from ..reference.engine.settings import DecodeSettings, PrefillSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command()
@settings_options("settings", PrefillSettings)
@settings_options("logs", LogSettings)
def prefill(settings: PrefillSettings, logs: LogSettings) -> None:
    """Run a prefill instance of the reference engine.

    It serves until SIGTERM or Ctrl-C, and needs an agent on its socket.

    \b
      etcd-pd run -- etcd-pd prefill --port 30001 --bootstrap-port 8998 --dp-size 4
    """
    configure(logs)
    from ..reference.engine.launch import run_prefill

    run_prefill(settings)


@click.command()
@settings_options("settings", DecodeSettings)
@settings_options("logs", LogSettings)
def decode(settings: DecodeSettings, logs: LogSettings) -> None:
    """Run a decode instance of the reference engine.

    It serves until SIGTERM or Ctrl-C, and needs an agent on its socket.

    \b
      etcd-pd run -- etcd-pd decode --port 31001
    """
    configure(logs)
    from ..reference.engine.launch import run_decode

    run_decode(settings)
