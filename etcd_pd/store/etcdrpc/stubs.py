"""etcd's services as callables on a gRPC channel, made from the descriptors of rpc.proto.

`KVStub(channel).Range(request)` and so on: the names that grpc's own generator would give, without its 1,500 lines and
without its floor on grpcio's version. The channel may be a synchronous one or one of grpc.aio.
"""

from __future__ import annotations

from typing import Any, ClassVar

from google.protobuf.message_factory import GetMessageClass

from etcd_pd.store.etcdrpc.proto import rpc_pb2


class _Stub:
    service: ClassVar[str]

    def __init__(self, channel: Any) -> None:
        service = rpc_pb2.DESCRIPTOR.services_by_name[self.service]
        for method in service.methods:
            asked = "stream" if method.client_streaming else "unary"
            answered = "stream" if method.server_streaming else "unary"
            multicallable = getattr(channel, f"{asked}_{answered}")(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, multicallable)

    def __getattr__(self, method: str) -> Any:
        # Only reached for what __init__ did not set; here for the type checker as much as for a clear message.
        raise AttributeError(f"etcd's {self.service} service has no method {method!r} in rpc.proto")


class KVStub(_Stub):
    service = "KV"


class WatchStub(_Stub):
    service = "Watch"


class LeaseStub(_Stub):
    service = "Lease"


class ClusterStub(_Stub):
    service = "Cluster"


class MaintenanceStub(_Stub):
    service = "Maintenance"


class AuthStub(_Stub):
    service = "Auth"
