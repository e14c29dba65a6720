"""A plug-in of SGLang's own kind with what its engine needs to disaggregate on a machine without a GPU.

Mooncake's sender is to take page indices as the other backends do: without CUDA there is no pinned memory and no event.
SGLang has a flag for that. ``ENGINE_TIMES`` names a directory in which call_times.py keeps what calls took.
"""

import os


def register() -> None:
    """SGLang calls it in each of its processes."""
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

    MooncakeKVSender.supports_host_tensor_indices = False
    if os.environ.get("ENGINE_TIMES"):
        import call_times  # type: ignore[import-not-found]  # this folder is on the path there

        call_times.keep(os.environ["ENGINE_TIMES"])
