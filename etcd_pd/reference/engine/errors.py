"""What an engine tells a client that it could not serve: one typed JSON object, one HTTP status."""

from __future__ import annotations

from typing import Any

from etcd_pd import (
    AgentBusy,
    AgentUnavailable,
    EtcdPDError,
    InstanceUnknown,
    RankDraining,
    RegistrationTimeout,
    RoomConflict,
    RoomsNotWatched,
    RoomTimeout,
    ViewStale,
)

#: Type of the failure of a request whose client has gone.
ABORTED = "Aborted"


class RequestFailed(EtcdPDError):
    """A request that ends without a result.

    Attributes:
        status: HTTP status, where nothing was streamed yet.
        type: name of the kind of failure, for programs.
        details: what else the client is told, JSON values.
    """

    def __init__(self, status: int, type: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.details = details

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"type": self.type, **self.details, "message": str(self)}}


class BadRequest(RequestFailed):
    """A field of the request breaks a rule. Asking again does not help, so a router must not retry it."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(400, "BadRequest", f"{field}: {rule}", field=field, rule=rule)


class ModelUnknown(RequestFailed):
    """The request names a model that this instance does not serve, as OpenAI says it."""

    def __init__(self, model: str, served: str) -> None:
        message = f"the model {model!r:.80} does not exist: {served!r} does"
        super().__init__(404, "ModelUnknown", message, param="model", code="model_not_found")


_STATUS: dict[type[EtcdPDError], int] = {
    RoomConflict: 409,
    RegistrationTimeout: 503,
    RankDraining: 503,
    AgentBusy: 503,
    AgentUnavailable: 503,
    ViewStale: 503,
    InstanceUnknown: 503,
    RoomsNotWatched: 503,
    RoomTimeout: 504,
}


def from_registry(error: EtcdPDError) -> RequestFailed:
    """The registry's error as the client sees it: its own name, a status that a router retries (but for a conflict)."""
    details = {name: getattr(error, name) for name in ("room", "instance", "dp_rank") if hasattr(error, name)}
    return RequestFailed(_STATUS.get(type(error), 500), type(error).__name__, str(error), **details)
