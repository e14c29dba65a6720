"""The old place of :mod:`etcd_pd.client.drain`, which pods may still run: it goes with version 0.3."""

import sys

from .client.drain import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
