"""etcd_pd inside SGLang: a plug-in of SGLang's own kind, found through the entry point group ``sglang.srt.plugins``.

With ``ETCD_PD_SOCKET`` (or ``ETCD_PD_ENABLE=1``) set, SGLang's HTTP calls to its bootstrap server become calls of this
process's agent. SGLang's own decisions stay its own: which rank serves a request, when a room needs the registry, what
a failure means. An instance that the registry does not know is left to SGLang's HTTP, and so is everything where no
agent answers. docs/integrations.md lists the variables.
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import uuid
from typing import Any, NamedTuple

from ..config import switch
from .guard import Original, guard, guard_around

log = logging.getLogger(__name__)

#: The SGLang releases that the tests ran against.
TESTED_VERSIONS = ("0.5.23",)

_CONN = "sglang.srt.disaggregation.common.conn"
_PREFILL = "sglang.srt.disaggregation.prefill"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"


class HookPoint(NamedTuple):
    """A method of SGLang's that the plug-in stands in front of, behind or around.

    Attributes:
        target: its dotted path.
        kind: name of SGLang's hook type.
        parameters: those that it must have, in this order.
        hook: the hook, as a name in this module.
    """

    target: str
    kind: str
    parameters: tuple[str, ...]
    hook: str


HOOK_POINTS = (
    HookPoint(f"{_CONN}.CommonKVManager._register_topology_row", "AROUND", ("self", "url", "payload"), "announce"),
    HookPoint(f"{_CONN}.CommonKVManager.try_ensure_parallel_info", "AROUND", ("self", "bootstrap_addr"), "topology"),
    HookPoint(f"{_CONN}.CommonKVSender._register_prefill_dp_rank", "AROUND", ("self",), "register_room"),
    HookPoint(f"{_CONN}.CommonKVSender.clear", "AFTER", ("self",), "sender_cleared"),
    HookPoint(f"{_PREFILL}.PrefillBootstrapQueue.add", "AFTER", ("self", "req"), "request_queued"),
    HookPoint(f"{_SCHEDULER}._set_or_validate_priority", "AFTER", ("self", "req"), "priority_checked"),
    HookPoint(f"{_CONN}.CommonKVManager._start_heartbeat_checker_thread", "AFTER", ("self",), "decode_started"),
    HookPoint(
        f"{_CONN}.CommonKVReceiver.__init__",
        "AFTER",
        ("self", "mgr", "bootstrap_addr", "bootstrap_room"),
        "receiver_made",
    ),
    HookPoint(f"{_CONN}.CommonKVReceiver.init", "AFTER", ("self", "prefill_dp_rank"), "receiver_initialised"),
    HookPoint(f"{_CONN}.CommonKVReceiver.clear", "AFTER", ("self",), "receiver_cleared"),
    HookPoint(
        f"{_CONN}.CommonKVReceiver._get_bootstrap_info_from_server",
        "AROUND",
        ("self", "prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"),
        "rank_endpoint",
    ),
    HookPoint(
        f"{_CONN}.CommonKVReceiver.query_prefill_dp_ranks",
        "AROUND",
        ("bootstrap_addr", "bootstrap_rooms"),
        "query_rooms",
    ),
    HookPoint(f"{_SCHEDULER}.ingest_requests", "BEFORE", ("self",), "tick"),
)

#: What the hooks use of SGLang's objects beside the methods above.
USED_NAMES = (
    f"{_CONN}.CommonKVManager.record_failure",
    f"{_CONN}.CommonKVManager.update_status",
    f"{_CONN}.CommonKVManager._handle_node_failure",
    f"{_CONN}.PrefillServerInfo",
    "sglang.srt.disaggregation.base.conn.KVPoll.Success",
    "sglang.srt.disaggregation.base.conn.KVPoll.Failed",
    "sglang.srt.environ.Envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT",
    "sglang.srt.runtime_context.get_parallel",
    "sglang.srt.runtime_context.get_serving",
)


def register() -> None:
    """The entry point: SGLang calls it in each of its processes, early."""
    if not enabled():
        return
    missing = moved_names()
    if missing:
        log.warning("etcd_pd: not used, since this SGLang does not have %s as expected", ", ".join(missing))
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from .scheduler_session import connect

    try:
        connect().close()  # it opens nothing before its first use
    except ValueError as exc:
        log.error("etcd_pd: not used: %s", exc)
        return
    # SGLang's processes inherit it from the first, so that all of one start have it in common
    os.environ.setdefault("ETCD_PD_LAUNCH_ID", str(uuid.uuid4()))
    for point in HOOK_POINTS:
        wrap = guard_around if point.kind == "AROUND" else guard
        HookRegistry.register(point.target, wrap(globals()[point.hook]), HookType[point.kind])


def enabled() -> bool:
    """Whether the environment asks for the plug-in."""
    return switch("ETCD_PD_ENABLE", "1" if os.environ.get("ETCD_PD_SOCKET") else "0")


def moved_names() -> list[str]:
    """What the plug-in needs of SGLang and does not find, by name; empty where all is as expected."""
    missing = [name for name in USED_NAMES if _resolve(name) is None]
    for point in HOOK_POINTS:
        found, (owner, _, attribute) = _resolve(point.target), point.target.rpartition(".")
        if found is None or attribute not in vars(_resolve(owner)):  # one that is inherited is another
            missing.append(point.target)
        elif tuple(inspect.signature(found).parameters)[: len(point.parameters)] != point.parameters:
            missing.append(f"{point.target}({', '.join(point.parameters)})")
    fetch = inspect.unwrap(_resolve(f"{_CONN}.CommonKVManager.try_ensure_parallel_info") or register)
    if not {"requests", "get"} <= set(fetch.__code__.co_names):
        missing.append(f"{_CONN}.CommonKVManager.try_ensure_parallel_info with requests.get in it")
    return missing


def _resolve(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


# --- hooks on the prefill side


def announce(original: Original, manager: Any, url: str, payload: dict[str, Any]) -> None:
    """A rank registers: in etcd, and still with SGLang's own server, for decodes without the plug-in."""
    _session().prefill.announce(manager, url, payload)
    original(manager, url, payload)


def register_room(original: Original, sender: Any) -> None:
    """A rank took a room."""
    _session().prefill.register(original, sender)


def request_queued(result: None, queue: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    """The prefill side took a request, or refused it: then decode is to know."""
    if getattr(req, "disagg_kv_sender", None) is None:
        _session().prefill.refused(req.bootstrap_room, "the prefill side refused the request")


def priority_checked(allowed: bool, scheduler: Any, req: Any) -> None:
    """A request with a priority came where none is allowed: SGLang refuses it before it is queued."""
    if (
        not allowed
        and getattr(req, "bootstrap_room", None) is not None
        and scheduler.disaggregation_mode.value == "prefill"
    ):
        _session().prefill.refused(req.bootstrap_room, "the prefill side refused the request's priority")


def sender_cleared(result: None, sender: Any) -> None:
    """The prefill side is done with a room."""
    _session().prefill.cleared(sender)


# --- hooks on the decode side


def decode_started(result: Any, manager: Any) -> None:
    """A decode process is about to serve."""
    _session().decode.start(manager)


def receiver_made(result: None, receiver: Any, *args: Any, **kwargs: Any) -> None:
    """A request arrived: ask for its room before SGLang does."""
    _session().decode.made(receiver)


def receiver_initialised(result: None, receiver: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang knows the room's rank, from wherever: its death is to be noticed."""
    _session().decode.initialised(receiver)


def receiver_cleared(result: None, receiver: Any) -> None:
    """The decode side is done with a room."""
    _session().decode.cleared(receiver)


def topology(original: Original, manager: Any, bootstrap_addr: str) -> bool:
    """Decode needs an instance's topology."""
    return bool(_session().decode.topology(original, manager, bootstrap_addr))


def rank_endpoint(
    original: Original,
    receiver: Any,
    prefill_dp_rank: int,
    prefill_cp_rank: int,
    target_tp_rank: int,
    target_pp_rank: int,
) -> Any:
    """Decode needs a rank's address."""
    place = (prefill_dp_rank, prefill_cp_rank, target_tp_rank, target_pp_rank)
    return _session().decode.rank_endpoint(original, receiver, place)


def query_rooms(original: Original, bootstrap_addr: str, bootstrap_rooms: list[int]) -> Any:
    """Decode needs the ranks of rooms."""
    return _session().decode.query(original, bootstrap_addr, bootstrap_rooms)


# --- both


def tick(*args: Any, **kwargs: Any) -> None:
    """A turn of the scheduler's loop: take events, and give a sign of life."""
    if _the_session is not None:
        _the_session.tick()


_the_session: Any = None


def _session() -> Any:
    """This process's connection to the agent, made when the first rank or request needs it."""
    global _the_session
    if _the_session is None:
        from .decode import DecodeSide
        from .prefill import PrefillSide
        from .scheduler_session import Session

        _the_session = Session(PrefillSide, DecodeSide)
    return _the_session
