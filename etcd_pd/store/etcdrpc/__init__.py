"""etcd's v3 API for current protobuf, and how it takes the place of the etcd3 package's own.

etcd3 0.12.0 carries messages generated for protobuf 3; importing them on protobuf 4 or later is a TypeError. This
package offers the same names, and `install()` puts it where etcd3 looks for its own:

    from etcd_pd.store import etcdrpc
    etcdrpc.install()
    import etcd3

Only etcd_pd.store imports this package, so nothing but the agent's process ever registers etcd's protobuf symbols.
"""

from __future__ import annotations

import sys

from etcd_pd.store.etcdrpc.proto.auth_pb2 import *  # noqa: F403
from etcd_pd.store.etcdrpc.proto.kv_pb2 import *  # noqa: F403
from etcd_pd.store.etcdrpc.proto.rpc_pb2 import *  # noqa: F403
from etcd_pd.store.etcdrpc.stubs import (
    AuthStub as AuthStub,
    ClusterStub as ClusterStub,
    KVStub as KVStub,
    LeaseStub as LeaseStub,
    MaintenanceStub as MaintenanceStub,
    WatchStub as WatchStub,
)

_PLACE = "etcd3.etcdrpc"


def install() -> None:
    """Makes `import etcd3` use these messages. Call it before that import; calling it again does nothing."""
    here = sys.modules[__name__]
    if sys.modules.setdefault(_PLACE, here) is not here:
        raise ImportError(f"{_PLACE} was imported before etcd_pd could take its place: call install() first")
