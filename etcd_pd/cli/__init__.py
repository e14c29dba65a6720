"""The ``etcd-pd`` command."""

from __future__ import annotations

import sys

from .stopping import INTERRUPTED


def main() -> int:
    """Run the command line; what it needs beyond the standard library is imported only here."""
    try:
        from .app import cli
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("etcd_pd"):
            raise
        print(f"etcd-pd needs {error.name}: pip install 'etcd-pd[agent]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED  # nothing has begun, so there is nothing to say
    try:
        cli.main(prog_name="etcd-pd")
    except SystemExit as end:
        if "etcd_pd.agent.main" in sys.modules and isinstance(end.code, int):
            from .leave import leave

            leave(end.code)
        raise
