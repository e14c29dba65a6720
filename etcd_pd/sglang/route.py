"""SGLang's ``/route`` as etcd_pd's values: what its prefill ranks PUT, and what its decode GETs. Pure.

Field names and defaults are those of SGLang's bootstrap protocol (checked against SGLang's own server in the tests).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..wire.limits import check_int
from ..wire.values import PrefillInstance, Rank, RankEndpoint, Topology

#: What an instance says beside its topology, in ``InstanceInfo.extra``, with what SGLang assumes where it is missing.
_EXTRA_DEFAULTS: dict[str, Any] = {
    "page_size": None,
    "kv_cache_dtype": None,
    "load_balance_method": "follow_bootstrap_room",
    "enable_dsa_cache_layer_split": False,
    "dsv41_spec_layout": None,
    "kv_layout": None,
    "decode_allocation_policy": "early",
    "enable_kv_cache_sharding": False,
    "prefill_http_port": None,
}
#: What makes two topologies two, as ``GET /route`` names it.
_SIZES = ("attn_tp_size", "attn_cp_size", "dp_size", "pp_size")
#: In these the first rank's word stands, as in SGLang's server; differences in the others are contradictions.
_FIRST_WINS = frozenset({"prefill_http_port"})
#: SGLang decides itself when a rank is computed from the room, so the registry must not: it knows no such policy.
_POLICY_PREFIX = "sglang:"


@dataclass(frozen=True)
class Row:
    """One rank's registration.

    Attributes:
        rank: its place; ``dp`` is the attention DP rank, or the replica's with plain data parallelism.
        topology: sizes of the same dimensions.
        ip: where it hands over KV caches.
        port: the same.
        extra: what it says of its instance beside that.
    """

    rank: Rank
    topology: Topology
    ip: str
    port: int
    extra: dict[str, Any]

    @property
    def policy(self) -> str:
        """The instance's DP dispatch policy as the registry names it."""
        return _POLICY_PREFIX + str(self.extra["load_balance_method"])


def parse_row(data: object) -> Row:
    """Read the body of ``PUT /route``.

    Raises:
        ConfigError: a field is missing, of the wrong type or out of range.
    """
    if not isinstance(data, Mapping):
        raise ConfigError("body", "must be a JSON object")
    plain_dp = _size(data, "system_dp_size") != 1
    dp = "system_dp" if plain_dp else "attn_dp"
    topology = Topology(
        dp=_size(data, f"{dp}_size"),
        cp=_size(data, "attn_cp_size"),
        tp=_size(data, "attn_tp_size"),
        pp=_size(data, "pp_size"),
    )
    rank = Rank(
        dp=check_int(f"{dp}_rank", _get(data, f"{dp}_rank"), 0, topology.dp - 1),
        cp=check_int("attn_cp_rank", _get(data, "attn_cp_rank"), 0, topology.cp - 1),
        tp=check_int("attn_tp_rank", _get(data, "attn_tp_rank"), 0, topology.tp - 1),
        pp=check_int("pp_rank", _get(data, "pp_rank"), 0, topology.pp - 1),
    )
    endpoint = RankEndpoint(rank, _get(data, "rank_ip"), _integer("rank_port", _get(data, "rank_port")))
    for name in ("page_size", "kv_cache_dtype"):
        _get(data, name)
    extra = {name: data.get(name, default) for name, default in _EXTRA_DEFAULTS.items()}
    extra["page_size"] = _integer("page_size", extra["page_size"])
    return Row(rank, topology, endpoint.ip, endpoint.port, extra)


def contradiction(row: Row, sibling: Row) -> str | None:
    """In which field a rank's registration contradicts a sibling's; None where they agree on their instance."""
    for name in ("dp", "cp", "tp", "pp"):
        if getattr(row.topology, name) != getattr(sibling.topology, name):
            return f"{name} size"
    for name, value in row.extra.items():
        if name not in _FIRST_WINS and value != sibling.extra.get(name):
            return name
    return None


def registered(instance: PrefillInstance | None) -> int:
    """How many distinct ranks of an instance are there."""
    return len(instance.ranks) if instance else 0


def is_complete(instance: PrefillInstance | None) -> bool:
    """Whether all ranks of an instance are there."""
    if instance is None:
        return False
    topology = instance.info.topology
    return registered(instance) >= topology.dp * topology.endpoints_per_rank


def is_of_start(held: Any, incarnation: str, instance: PrefillInstance) -> bool | None:
    """Whether what SGLang holds of a prefill is of the start that the registry describes; None where that is open.

    Args:
        held: SGLang's own description.
        incarnation: of which start it is; empty where SGLang's own server gave it.
    """
    if incarnation:
        return instance.info.incarnation == incarnation
    if not is_complete(instance):
        return None  # it may be what is left of the start before
    info = server_info(instance)
    return all(getattr(held, name, None) == info[name] for name in _SIZES)


def server_info(instance: PrefillInstance) -> dict[str, Any]:
    """How an instance is described to decode: the body of ``GET /route`` for all ranks."""
    topology, extra = instance.info.topology, {**_EXTRA_DEFAULTS, **instance.info.extra}
    info: dict[str, Any] = {
        "attn_tp_size": topology.tp,
        "attn_cp_size": topology.cp,
        "dp_size": topology.dp,
        "pp_size": topology.pp,
        "page_size": extra["page_size"],
        "kv_cache_dtype": extra["kv_cache_dtype"],
        "follow_bootstrap_room": extra["load_balance_method"] == "follow_bootstrap_room",
        "enable_dsa_cache_layer_split": bool(extra["enable_dsa_cache_layer_split"]),
    }
    info |= {name: extra[name] for name in ("dsv41_spec_layout", "kv_layout") if extra[name] is not None}
    info["decode_allocation_policy"] = extra["decode_allocation_policy"]
    info["enable_kv_cache_sharding"] = bool(extra["enable_kv_cache_sharding"])
    info["prefill_http_port"] = extra["prefill_http_port"]
    # decode computes these; SGLang's server sends them empty
    return info | dict.fromkeys(
        (
            "target_tp_rank",
            "target_tp_ranks",
            "target_cp_ranks",
            "target_pp_ranks",
            "required_dst_info_num",
            "required_prefill_response_num",
        )
    )


def rank_info(instance: PrefillInstance, rank: Rank) -> dict[str, Any] | None:
    """Where one rank hands over KV caches: the body of ``GET /route`` for it; None where it is not there."""
    found = next((endpoint for endpoint in instance.ranks if endpoint.rank == rank), None)
    return {"rank_ip": found.ip, "rank_port": found.port} if found else None


def _get(data: Mapping[str, Any], name: str) -> Any:
    if name not in data:
        raise ConfigError(name, "is missing")
    return data[name]


def _size(data: Mapping[str, Any], name: str) -> int:
    return check_int(name, _get(data, name), 1, 4096)


def _integer(name: str, value: object) -> int:
    # SGLang's server takes whatever int() takes
    try:
        if isinstance(value, bool):
            raise ValueError
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        raise ConfigError(name, f"must be an integer, not {value!r:.80}") from None
