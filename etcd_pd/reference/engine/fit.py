"""Whether a decode can take a request's KV cache from a prefill instance at all."""

from __future__ import annotations

from etcd_pd import PrefillInstance

from .card import ModelCard
from .errors import BadRequest, RequestFailed
from .messages import Work
from .settings import FOLLOW_BOOTSTRAP_ROOM


def misfit(card: ModelCard, room: int, instance: PrefillInstance) -> RequestFailed | None:
    """Why its KV caches are of no use to this model; None where they are. A router may find a pair that fits."""
    if instance.info.fingerprint == card.fingerprint:
        return None
    message = f"{instance.id} serves another model, or in another number format, than this instance"
    return RequestFailed(503, "FingerprintMismatch", message, room=room, instance=instance.id)


def check_named_rank(work: Work, instance: PrefillInstance) -> None:
    """Whether the instance has the rank that the request names.

    Raises:
        BadRequest: it has not, or takes that room on another one.
    """
    dp_size = instance.info.topology.dp
    for name, rank in (("disagg_prefill_dp_rank", work.prefill_dp_rank), ("routed_dp_rank", work.routed_dp_rank)):
        if rank is not None and rank >= dp_size:
            raise BadRequest(name, f"must be in 0..{dp_size - 1} of {instance.id}, not {rank}")
    if instance.info.policy != FOLLOW_BOOTSTRAP_ROOM or work.prefill_dp_rank is not None:
        return
    computed = work.room % dp_size
    if work.routed_dp_rank not in (None, computed):
        raise BadRequest("routed_dp_rank", f"must be bootstrap_room % dp_size = {computed}")
