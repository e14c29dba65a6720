"""``etcd-pd agent`` and ``etcd-pd run``."""

from __future__ import annotations

import os

import click

from ..config import AgentSettings
from .logs import LogSettings, configure
from .options import settings_options

#: gRPC takes each message through two threads less with this, which it reads when it is imported.
FEWER_THREADS = ("GRPC_EXPERIMENTS", "-event_engine_client")


@click.command()
@settings_options("settings", AgentSettings)
@settings_options("logs", LogSettings)
def agent(settings: AgentSettings, logs: LogSettings) -> None:
    """Run the agent of this node or pod.

    Until SIGTERM or Ctrl-C it holds the leases, writes rooms in batches, keeps the one watch, and serves engines on
    its Unix socket.

    \b
      etcd-pd agent --etcd http://127.0.0.1:2379
      ETCD_PD_ETCD=http://a:2379,http://b:2379 ETCD_PD_ROOT=/etcd_pd/llama-70b etcd-pd agent
    """
    configure(logs)
    os.environ.setdefault(*FEWER_THREADS)
    from ..agent.main import run as run_agent

    raise SystemExit(run_agent(settings))


@click.command(context_settings={"ignore_unknown_options": True})
@settings_options("settings", AgentSettings)
@settings_options("logs", LogSettings)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(settings: AgentSettings, logs: LogSettings, command: tuple[str, ...]) -> None:
    """Run COMMAND with an agent beside it.

    It ends with COMMAND's exit status. An agent that answers on the socket is used and left alone; else one is
    started, and stopped after COMMAND. COMMAND finds the socket in ETCD_PD_SOCKET. Signals go to COMMAND. The agent
    logs to stderr.

    \b
      etcd-pd run -- python my_engine.py
      etcd-pd run --etcd http://10.0.0.5:2379 --root /etcd_pd/llama-70b -- python -m sglang.launch_server ...
    """
    from .runner import run_with_agent

    raise SystemExit(run_with_agent(settings, logs, command))
