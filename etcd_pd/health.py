"""The old place of :mod:`etcd_pd.client.health`, which pods may still run: it goes with version 0.3."""

import sys

from .client.health import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
