"""``etcd-pd dashboard``."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files

import click

from ..config import LOOPBACK, bracketed, default_socket_path, split_address
from ..errors import ConfigError
from .look import CellSettings
from .options import settings_options
from .stopping import run_until_stopped

#: The page holds all of itself, and asks nobody but its own server.
POLICY = (
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class DashboardSettings(CellSettings):
    """Which cell, which agents remember who is gone, and where the page is."""

    sockets: tuple[str, ...] = field(
        default_factory=lambda: (default_socket_path(),),
        metadata={"help": "the sockets of the agents here", "name": "socket"},
    )
    dashboard_listen: str = field(default="127.0.0.1:8420", metadata={"help": "HOST:PORT of the page; port 0: any"})

    def __post_init__(self) -> None:
        split_address("dashboard_listen", self.dashboard_listen)


@click.command()
@settings_options("settings", DashboardSettings)
def dashboard(settings: DashboardSettings) -> None:
    """Serve a page that shows the cell as it lives.

    What is wrong, ranks by load and state, rooms in flight, rates, leases running down, and events as they come. It
    only reads, and whoever reaches it may read: it is on loopback unless set otherwise. Ctrl-C ends it.

    \b
      etcd-pd dashboard --etcd http://127.0.0.1:2379
    """
    run_until_stopped(_serve(settings))


async def _serve(settings: DashboardSettings) -> None:
    from ..telemetry import http as plain_http
    from .feed import Feed

    page = files(__package__).joinpath("dashboard.html").read_bytes()
    answer = plain_http.Answer("text/html; charset=utf-8", page, (POLICY, "Cache-Control: no-store"))
    feed = Feed(settings, settings.sockets)
    host, port = split_address("dashboard_listen", settings.dashboard_listen)
    hosts = LOOPBACK if host in LOOPBACK else ()
    try:
        server = await plain_http.serve(host, port, {"/": lambda: answer}, {"/events": feed.stream}, hosts)
    except OSError as exc:
        raise ConfigError("dashboard_listen", f"cannot listen on {settings.dashboard_listen}: {exc.strerror}") from exc
    click.echo(f"http://{bracketed(host)}:{server.sockets[0].getsockname()[1]}/")
    try:
        await feed.run()
    finally:
        server.close()
