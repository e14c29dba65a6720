"""One engine process of one system: ``python -m benchmarks.engine CONFIG``, told what to do a run at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from . import loops
from .harness import play

Message = dict[str, Any]


def set_up(config: Message) -> Callable[[Message], Message]:
    """Make the side of the system that ``config`` names; what answers messages."""
    # proxies are for the outside world, and every address here is a loopback one
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    if config["role"] == "serve":
        from .peers import sglang

        server = sglang.Server(config)
        return lambda _: {"port": server.port}
    side = _side(config)

    def run(message: Message) -> Message:
        side.configure(message)
        cpu = time.process_time()
        own = getattr(side, message["do"], None)  # a floor has no engine: its loops are its own
        result = own(message) if own else getattr(loops, message["do"])(side, message)
        return {**result, "process_cpu_seconds": time.process_time() - cpu}

    return run


def _side(config: Message) -> Any:
    """A writer or a reader; only the system's own imports are made."""
    system, writes = config["system"], config["role"] == "write"
    if system == "etcd_pd":
        from .peers import ours

        return ours.OurWriter(config) if writes else ours.OurReader(config)
    if system == "sglang":
        from .peers import sglang

        return sglang.SGLangWriter(config) if writes else sglang.SGLangReader(config)
    from .peers import floor

    return floor.FloorWriter(config) if writes else floor.FloorReader(config)


if __name__ == "__main__":
    play(set_up)
