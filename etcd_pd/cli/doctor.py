"""``etcd-pd doctor``."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import click

from ..wire.limits import check_name
from .look import NodeSettings
from .options import settings_options


@click.command()
@settings_options("settings", NodeSettings)
@click.option(
    "--instance", default="doctor", show_default=True, help="whose keys are tried, where roles are by instance"
)
@click.option("--fix-hints", is_flag=True, help="say what to do about each finding")
def doctor(settings: NodeSettings, instance: str, fix_hints: bool) -> None:
    """Check this node's agent and its etcd, part by part.

    The agent's socket; each endpoint; TLS; the quorum; alarms; what these credentials may do; a lease's round trip;
    who is missing in the cell; rooms registered and resolved through the agent, timed. For those an instance
    not-an-engine-HOST-... is announced for a moment, whose address no request carries. It leaves nothing behind. Exit
    status 1 where something fails.

    \b
      etcd-pd doctor --etcd http://127.0.0.1:2379 --fix-hints
      etcd-pd doctor --output json | jq '.[] | select(.status == "fail")'
    """
    from .cell_check import check_cell
    from .checks import FAIL, OK, check_agent, check_etcd, check_round_trip

    check_name("--instance", instance)
    agent = check_agent(settings.socket_path)
    findings = [agent, *asyncio.run(check_etcd(settings.etcd, settings.root, instance))]
    findings.append(asyncio.run(check_cell(settings)))
    roles = next(finding for finding in findings if finding.check == "roles")
    findings.append(check_round_trip(settings.socket_path, agent, roles))
    if settings.output == "json":
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.status:<5}{finding.check}: {finding.text}")
            if fix_hints and finding.hint:
                click.echo(f"{'':<5}  -> {finding.hint}")
        if not fix_hints and any(finding.status != OK and finding.hint for finding in findings):
            click.echo("what to do: etcd-pd doctor --fix-hints")
    if any(finding.status == FAIL for finding in findings):
        raise SystemExit(1)
