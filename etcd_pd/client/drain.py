"""``python3 -m etcd_pd.client.drain``: take this node out of service before its engines end. Standard library only.

For a pod's preStop. Routers need a moment to notice that a pod ends, so nothing changes for ``--delay-seconds``; then
the agent lets no new room in, and ``--timeout-seconds`` are left for those that its engines hold or wait for. It always
ends with status 0: a pod that ends must end, whatever is left.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from ..config import default_socket_path
from ..errors import AgentUnavailable
from ..wire import messages
from .visit import visit


def main(arguments: list[str]) -> int:
    """Drain, and say on stderr how it went."""
    parser = argparse.ArgumentParser(
        prog="python3 -m etcd_pd.client.drain", description="Take this node out of service."
    )
    default = os.environ.get("ETCD_PD_SOCKET") or default_socket_path()
    parser.add_argument("--socket", default=default, help="the agent's socket")
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="how long rooms are still let in")
    parser.add_argument("--timeout-seconds", type=float, default=60.0, help="how long rooms may then take to end")
    options = parser.parse_args(arguments)
    time.sleep(options.delay_seconds)
    try:
        seconds = drain(options.socket, options.timeout_seconds)
    except AgentUnavailable as exc:
        print(f"not drained: {exc}", file=sys.stderr)
    else:
        print(f"drained in {seconds:.1f} s", file=sys.stderr)
    return 0


def drain(socket_path: str, timeout: float) -> float:
    """Drain a node; how many seconds that took.

    Args:
        socket_path: its agent's socket.
        timeout: seconds after which whoever still holds a room is left to itself.

    Raises:
        AgentUnavailable: there is no agent, or the time-out passed.
    """
    started = time.monotonic()
    with visit(socket_path, timeout) as agent:
        agent.greet()
        agent.send(messages.DRAIN_NODE)
        agent.receive(messages.DRAINED)
    return time.monotonic() - started


def leave(socket_path: str, timeout: float) -> None:
    """Say to a node's agent that its engines are asked to end: nobody misses those that end from now on.

    Args:
        socket_path: the agent's socket.
        timeout: seconds that it may take.

    Raises:
        AgentUnavailable: there is no agent, it is of an earlier release, or the time-out passed.
    """
    with visit(socket_path, timeout) as agent:
        agent.greet()
        agent.send(messages.LEAVE_NODE)
        agent.receive(messages.VIEW)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
