"""``python -m etcd_pd`` is ``etcd-pd``."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
