"""Stands in for sglang-kernel, whose published build is for CUDA: the names that SGLang's CPU engine imports from it.

SGLang computes a plain transformer with torch where a processor has no AMX, so none of them is called; each raises if
one is.
"""

from collections.abc import Callable
from typing import Any


def absent(name: str) -> Callable[..., Any]:
    """A function that is not there."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} is not in the tests' stand-in")

    return function


for _name in (
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_draft_decode_metadata_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
):
    globals()[_name] = absent(_name)
