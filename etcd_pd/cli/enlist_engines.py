"""``etcd-pd enlist-engines``."""

from __future__ import annotations

import signal
import sys

import click

from ..kubernetes.settings import EnlistSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command("enlist-engines")
@settings_options("settings", EnlistSettings)
@settings_options("logs", LogSettings)
def enlist_engines(settings: EnlistSettings, logs: LogSettings) -> None:
    """Give SGLang's router the engine pods that are ready, and take from it those that are not.

    Beside a router that was started without its own discovery, in a pod whose service account may list pods. Other
    workers of that router are removed. A key that it asks for is in ROUTER_API_KEY. SIGTERM ends it.

    \b
      etcd-pd enlist-engines --selector app.kubernetes.io/instance=R,etcd-pd/role --router http://localhost:8000
    """
    configure(logs)
    from ..kubernetes.api import Kubernetes
    from ..kubernetes.enlist import Enlisting
    from ..kubernetes.router import own_key

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    Enlisting(settings, Kubernetes(settings.namespace), own_key()).run()
