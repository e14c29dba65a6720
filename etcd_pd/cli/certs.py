"""``etcd-pd certs``."""

from __future__ import annotations

import click

from ..kubernetes.settings import CertSettings
from .logs import LogSettings, configure
from .options import settings_options


@click.command()
@settings_options("settings", CertSettings)
@settings_options("logs", LogSettings)
def certs(settings: CertSettings, logs: LogSettings) -> None:
    """Keep etcd's certificates in Kubernetes Secrets.

    In a pod whose service account may read and write those Secrets: it makes an authority for one etcd and a
    certificate for each identity where there is none, and renews what is about to end. It may run at any time.

    \b
      etcd-pd certs --authority-secret ca --server-secret etcd --server-names etcd.prod.svc,127.0.0.1 \\
        --client-secrets root=etcd-root,prefill=etcd-prefill,decode=etcd-decode
    """
    configure(logs)
    from ..kubernetes.api import Kubernetes
    from ..kubernetes.certs import keep_certificates

    written = keep_certificates(settings, Kubernetes(settings.namespace))
    click.echo(f"wrote {', '.join(written)}" if written else "every certificate is good")
