"""Bodies of ``PUT /route`` as SGLang's prefill sends them (test_contract.py compares one with the real thing)."""

from __future__ import annotations

import itertools
from typing import Any


def row(dp: int = 0, dp_size: int = 1, *, plain_dp: bool = False, **fields: Any) -> dict[str, Any]:
    """One rank's registration; further fields by their own names."""
    attention = {"attn_dp_size": dp_size, "attn_dp_rank": dp, "system_dp_size": 1, "system_dp_rank": 0}
    replicas = {"attn_dp_size": 1, "attn_dp_rank": 0, "system_dp_size": dp_size, "system_dp_rank": dp}
    return {
        "attn_tp_size": 1,
        "attn_tp_rank": 0,
        "attn_cp_size": 1,
        "attn_cp_rank": 0,
        "pp_size": 1,
        "pp_rank": 0,
        "rank_ip": "127.0.0.1",
        "rank_port": 10 + dp,
        "page_size": 64,
        "kv_cache_dtype": "auto",
        "kv_layout": None,
        "dsv41_spec_layout": None,
        "load_balance_method": "round_robin",
        "enable_dsa_cache_layer_split": False,
        "enable_kv_cache_sharding": False,
        "prefill_http_port": None,
        "decode_allocation_policy": "early",
        **(replicas if plain_dp else attention),
        **fields,
    }


def all_rows(dp_size: int = 1, tp: int = 1, cp: int = 1, pp: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Every rank of an instance."""
    places = itertools.product(range(dp_size), range(cp), range(tp), range(pp))
    return [
        row(
            d,
            dp_size,
            attn_cp_size=cp,
            attn_cp_rank=c,
            attn_tp_size=tp,
            attn_tp_rank=t,
            pp_size=pp,
            pp_rank=p,
            rank_port=1000 + 100 * d + 10 * c + 2 * t + p,
            **fields,
        )
        for d, c, t, p in places
    ]
