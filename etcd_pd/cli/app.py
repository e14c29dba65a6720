"""The command group: what ``etcd-pd --help`` teaches, and how errors reach a person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .. import __version__
from ..errors import EtcdPDError
from .act import drain, fail
from .agent import agent, run
from .certs import certs
from .dashboard import dashboard
from .doctor import doctor
from .end_fleets import end_fleets
from .engine import decode, prefill
from .enlist_engines import enlist_engines
from .etcd_defragment import etcd_defragment
from .etcd_init import etcd_init
from .etcd_local import etcd
from .etcd_member import etcd_member
from .gateway import gateway
from .hints import next_step
from .live import top, watch
from .look import instances, room, rooms, status
from .up import up
from .version import version


class Commands(click.Group):
    """A group whose commands report etcd_pd's own errors as one line, in the order of their first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with errors_as_messages(ctx):
            return super().invoke(ctx)


@contextmanager
def errors_as_messages(ctx: click.Context) -> Iterator[None]:
    """Turn a typed error into a message, a next step and exit status 1, and a missing extra into what to install."""
    try:
        yield
    except EtcdPDError as error:
        step = next_step(error)
        raise click.ClickException(f"{error}\nNext: {step}" if step else str(error)) from error
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        extra = EXTRAS_OF_COMMANDS.get(ctx.invoked_subcommand or "", extra)
        raise click.ClickException(f"needs {error.name}: pip install 'etcd-pd[{extra}]'") from error


#: Which extra brings a package that a command imports when it runs.
EXTRAS = {
    **dict.fromkeys(("etcd3", "grpc", "google", "prometheus_client", "rich", "tenacity", "uvloop"), "agent"),
    **dict.fromkeys(
        ("aiohttp", "msgspec", "numpy", "safetensors", "tokenizers", "torch", "transformers", "zmq"), "engine"
    ),
    "cryptography": "cluster",
}
#: Which extras bring all that a command needs, where that is more than the agent's.
EXTRAS_OF_COMMANDS = {
    "up": "engine,router,embedded",
    **dict.fromkeys(("prefill", "decode"), "engine"),
    "gateway": "gateway",
    "certs": "cluster",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="etcd-pd %(version)s")
def cli() -> None:
    """Which prefill rank holds this room's KV cache?

    A prefill engine registers each bootstrap room with its data-parallel rank as a leased etcd key; decode engines
    learn the rank through an etcd watch. Engines talk to an agent on their node over a Unix socket, and the agent
    talks to etcd.

    \b
      etcd-pd up                                      a whole serving stack on this machine, with curl lines to try
      etcd-pd etcd                                    just an etcd on this machine, for development
      etcd-pd run --etcd http://HOST:2379 -- COMMAND  an engine of your own with an agent beside it
      etcd-pd status --etcd http://HOST:2379          etcd, agents, ranks, rooms
      etcd-pd watch --etcd http://HOST:2379           rooms and ranks as they come and go
      etcd-pd doctor --fix-hints                      what is wrong on this node, and what to do about it

    Every setting is also an environment variable; each command's --help names it.
    """


for command in (
    *(up, etcd, agent, run, prefill, decode, gateway),
    *(status, instances, rooms, room, watch, top, dashboard, doctor),
    *(drain, fail),
    *(etcd_init, certs, etcd_member, etcd_defragment, end_fleets, enlist_engines, version),
):
    cli.add_command(command)
