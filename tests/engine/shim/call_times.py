"""How long calls take inside SGLang's scheduler processes: seconds, a line each, in files of each process."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def keep(directory: str) -> None:
    """Time the plug-in's calls, and SGLang's own that they stand for."""
    from sglang.srt.disaggregation.common import conn

    from etcd_pd.sglang import decode, prefill, scheduler_session

    _time(directory, "register", prefill.PrefillSide, "register")
    _time(directory, "query", decode.DecodeSide, "query")
    _time(directory, "made", decode.DecodeSide, "made")
    _time(directory, "tick", scheduler_session.Session, "tick")
    _time(directory, "sglang_post", conn.CommonKVSender, "_register_prefill_dp_rank")


def _time(directory: str, name: str, owner: Any, method: str) -> None:
    inner: Callable[..., Any] = getattr(owner, method)
    path = Path(directory, f"{name}-{os.getpid()}")

    @functools.wraps(inner)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            took = time.perf_counter() - began
            with path.open("a") as file:
                file.write(f"{took:.9f}\n")

    setattr(owner, method, timed)
