"""Commands that look into a cell take the user's own where no etcd is given, and say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from etcd_pd.cli.act import DrainSettings
from etcd_pd.cli.app import cli
from etcd_pd.cli.dashboard import DashboardSettings
from etcd_pd.cli.look import NodeSettings
from etcd_pd.cli.options import settings_options
from etcd_pd.reference.local.local_cell import LocalCell, claim_local_cell

ELSEWHERE = "http://127.0.0.1:2379"
HERE = "http://127.0.0.1:23456"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def stack(runtime: Path) -> Iterator[LocalCell]:
    """A stack that runs."""
    sockets = {"prefill-0": "/run/prefill-0.sock", "decode-0": "/run/decode-0.sock"}
    cell = LocalCell("etcd-pd up", os.getpid(), (HERE,), "/cell", sockets)
    with claim_local_cell("etcd-pd up") as tell:
        tell(cell)
        yield cell


def call(*arguments: str, **environ: str) -> tuple[Result, NodeSettings]:
    """Run a command that looks into a cell; its result and the settings that it was given."""
    given: list[Any] = []

    @click.command()
    @settings_options("settings", NodeSettings)
    def command(settings: NodeSettings) -> None:
        given.append(settings)

    result = CliRunner().invoke(command, arguments, env=environ)
    return result, given[0]


def test_the_stack_s_own_addresses_are_taken_when_nothing_is_given(stack: LocalCell) -> None:
    result, settings = call()
    assert (settings.etcd.endpoints, settings.root, settings.socket_path) == ((HERE,), "/cell", "/run/prefill-0.sock")
    assert result.stderr == f"etcd-pd: 'etcd-pd up' (pid {stack.pid}) runs here, so looking at its etcd, {HERE}\n"
    assert result.stdout == ""


@pytest.mark.usefixtures("stack")
def test_every_agent_s_socket_is_taken_when_a_command_asks_all_agents() -> None:
    given: list[DashboardSettings] = []

    @click.command()
    @settings_options("settings", DashboardSettings)
    def command(settings: DashboardSettings) -> None:
        given.append(settings)

    CliRunner().invoke(command)
    CliRunner().invoke(command, ["--socket", "/run/a.sock,/run/b.sock"])
    assert [settings.sockets for settings in given] == [
        ("/run/prefill-0.sock", "/run/decode-0.sock"),
        ("/run/a.sock", "/run/b.sock"),
    ]


def test_drain_asks_the_stack_s_prefill_agent_when_no_socket_is_given(stack: LocalCell) -> None:
    given: list[DrainSettings] = []

    @click.command()
    @settings_options("settings", DrainSettings)
    def command(settings: DrainSettings) -> None:
        given.append(settings)

    result = CliRunner().invoke(command)
    assert result.stderr == f"etcd-pd: 'etcd-pd up' (pid {stack.pid}) runs here, so asking /run/prefill-0.sock\n"
    assert CliRunner().invoke(command, ["--socket", "/run/mine.sock"]).stderr == ""
    assert [settings.socket_path for settings in given] == ["/run/prefill-0.sock", "/run/mine.sock"]


@pytest.mark.parametrize(
    ("arguments", "environ"), [(("--etcd", ELSEWHERE), {}), ((), {"ETCD_PD_ETCD": ELSEWHERE})], ids=["flag", "variable"]
)
@pytest.mark.usefixtures("stack")
def test_a_stack_is_left_alone_when_an_etcd_is_given(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    result, settings = call(*arguments, **environ)
    assert (settings.etcd.endpoints, settings.root) == ((ELSEWHERE,), "/etcd_pd/default")
    assert result.output == ""


@pytest.mark.usefixtures("stack")
def test_what_is_given_wins_when_a_stack_runs() -> None:
    _, settings = call("--root", "/mine", ETCD_PD_SOCKET="/run/mine.sock")
    assert (settings.etcd.endpoints, settings.root, settings.socket_path) == ((HERE,), "/mine", "/run/mine.sock")


def test_settings_hold_and_it_is_said_when_a_stack_is_still_starting(runtime: Path) -> None:
    with claim_local_cell("etcd-pd up"):
        result, settings = call()
    assert settings.etcd.endpoints == (ELSEWHERE,)
    assert "is still starting" in result.stderr


def test_settings_hold_and_it_is_said_when_a_stack_is_gone(runtime: Path) -> None:
    with claim_local_cell("etcd-pd up") as tell:
        tell(LocalCell("etcd-pd up", 77, (HERE,)))
        left_behind = (runtime / "etcd-pd-local.json").read_text()
    (runtime / "etcd-pd-local.json").write_text(left_behind)
    result, settings = call()
    assert settings.etcd.endpoints == (ELSEWHERE,)
    said = "'etcd-pd up' (pid 77) has ended and left its file behind; looking where the settings say"
    assert result.stderr == f"etcd-pd: {said}\n"


def test_settings_hold_and_it_is_said_when_the_file_is_a_link(runtime: Path) -> None:
    (runtime / "etcd-pd-local.json").symlink_to("/dev/null")
    result, settings = call()
    assert settings.etcd.endpoints == (ELSEWHERE,)
    assert "no local cell is looked for" in result.stderr


@pytest.mark.parametrize("words", ["fail rank ", "rooms --instance ", "watch --room ", "room ", "fail rank prefill-0 "])
def test_completion_is_silent_when_no_etcd_answers(words: str, runtime: Path) -> None:
    environ = {"_ETCD_PD_COMPLETE": "bash_complete", "COMP_WORDS": f"etcd-pd {words}"}
    environ |= {"COMP_CWORD": str(words.count(" ") + 1), "ETCD_PD_ETCD": "http://127.0.0.1:1"}
    result = CliRunner().invoke(cli, prog_name="etcd-pd", env=environ)
    assert result.output.strip() == ""
