"""``etcd-pd up``."""

from __future__ import annotations

import click

from ..reference.stack.settings import StackSettings
from .options import settings_options


@click.command()
@settings_options("settings", StackSettings)
@click.option(
    "--demo",
    is_flag=True,
    envvar="ETCD_PD_DEMO",
    show_envvar=True,
    help="send real prompts, check every answer, show what happened, and stop",
)
@click.option(
    "--prompts",
    default=32,
    show_default=True,
    envvar="ETCD_PD_PROMPTS",
    show_envvar=True,
    type=click.IntRange(1, 10_000),
    help="how many prompts the demo sends",
)
def up(settings: StackSettings, demo: bool, prompts: int) -> None:
    """Start a whole serving stack on this machine.

    On loopback and free ports: etcd, a prefill instance with data-parallel ranks, decode instances, an agent beside
    each, and SGLang's router. It prints the commands to try; Ctrl-C stops everything and leaves nothing behind.

    \b
      etcd-pd up                      leave it running
      etcd-pd up --demo               32 prompts, checked against etcd and against the model alone
      etcd-pd up --model-path DIR     with a model of your own
    """
    from .bring_up import bring_up

    raise SystemExit(bring_up(settings, prompts if demo else 0))
