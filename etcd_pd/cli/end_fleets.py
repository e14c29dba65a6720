"""``etcd-pd end-fleets``."""

from __future__ import annotations

import click

from ..kubernetes.settings import FleetSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command("end-fleets")
@settings_options("settings", FleetSettings)
@settings_options("logs", LogSettings)
def end_fleets(settings: FleetSettings, logs: LogSettings) -> None:
    """Let engines drain before their release is removed.

    In a pod whose service account may change those Deployments and list pods: it scales them to nothing and waits until
    their pods are gone. It ends with status 0 whatever happens, so that nothing stops the removal.

    \b
      etcd-pd end-fleets --deployments R-etcd-pd-prefill,R-etcd-pd-decode --selector app.kubernetes.io/component=agent
    """
    configure(logs)
    from ..kubernetes.api import Kubernetes
    from ..kubernetes.fleets import end_fleets as end

    drained = end(settings, Kubernetes(settings.namespace))
    click.echo("drained" if drained else "not all have drained")
