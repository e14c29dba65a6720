"""The ``etcd-pd`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; what it needs beyond the standard library is imported only here."""
    try:
        from .app import cli
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("etcd_pd"):
            raise
        print(f"etcd-pd needs {error.name}: pip install 'etcd-pd[agent]'", file=sys.stderr)
        return 1
    cli.main(prog_name="etcd-pd")
