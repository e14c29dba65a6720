"""The command group: help that teaches, errors that a person understands."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import etcd_pd
from etcd_pd.cli.app import Commands, cli
from etcd_pd.errors import (
    AgentUnavailable,
    ConfigError,
    EtcdPDError,
    InstanceConflict,
    StoreRejected,
    StoreTimeout,
    StoreUnavailable,
)

COMMANDS = list(cli.commands)
#: What a newcomer uses: their help shows how.
WITH_EXAMPLES = [
    "up",
    "etcd",
    "agent",
    "run",
    "prefill",
    "decode",
    "status",
    "instances",
    "rooms",
    "room",
    "watch",
    "top",
]
WITH_EXAMPLES += ["top", "dashboard", "doctor", "drain"]


def test_help_says_what_it_is_and_gives_examples() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    assert "prefill rank" in text
    assert text.count("  etcd-pd ") >= 3
    listed = [line.split()[0] for line in text.partition("Commands:")[2].strip().splitlines()]
    assert listed == COMMANDS
    assert set(WITH_EXAMPLES) <= set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    if command in WITH_EXAMPLES:
        assert f"etcd-pd {command}" in result.output.partition("Usage:")[2].partition("\n")[2]
        assert "env var: ETCD_PD_" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (StoreUnavailable("list", "no answer"), "doctor --fix-hints"),
        (StoreTimeout("list", "no answer"), "which member is slow"),
        (StoreRejected("list", "permission denied"), "what these credentials may do"),
        (AgentUnavailable("no agent answers"), "etcd-pd run"),
        (InstanceConflict("p", "another start"), "etcd-pd instances"),
    ],
)
def test_an_error_of_ours_is_a_line_a_next_step_and_status_1(error: EtcdPDError, step: str) -> None:
    result = CliRunner().invoke(failing(error), ["fails"])
    assert result.exit_code == 1
    first, second = result.output.splitlines()
    assert first == f"Error: {error}"
    assert second.startswith("Next: ") and step in second


def test_an_error_that_says_it_all_is_one_line() -> None:
    assert CliRunner().invoke(failing(ConfigError("room", "must be a number")), ["fails"]).output == (
        "Error: room: must be a number\n"
    )


def failing(error: EtcdPDError) -> click.Group:
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def fails() -> None:
        raise error

    return group


def test_completion_knows_commands_and_flags() -> None:
    for words, expected in (("etcd-pd ro", {"rooms", "room"}), ("etcd-pd rooms --inst", {"--instance"})):
        environ = {"_ETCD_PD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(cli, prog_name="etcd-pd", env=environ)
        assert {line.partition(",")[2] for line in result.output.split()} == expected


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "engine"), ("grpc", "agent"), ("transformers.models", "engine")]
)
def test_a_missing_package_names_the_extra_that_brings_it(module: str, extra: str) -> None:
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def imports() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    result = CliRunner().invoke(group, ["imports"])
    assert result.exit_code == 1
    assert f"pip install 'etcd-pd[{extra}]'" in result.output


@pytest.mark.parametrize(
    ("command", "module", "extras"),
    [
        ("up", "aiohttp", "engine,router,embedded"),
        ("gateway", "aiohttp", "gateway"),
        ("gateway", "grpc", "gateway"),
        ("prefill", "grpc", "engine"),
        ("status", "grpc", "agent"),
        ("certs", "grpc", "cluster"),
    ],
)
def test_a_missing_package_names_the_command_s_own_extras(command: str, module: str, extras: str) -> None:
    @click.command(command)
    def imports() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    group = Commands(commands=[imports])
    assert f"needs {module}: pip install 'etcd-pd[{extras}]'\n" in CliRunner().invoke(group, [command]).output


def test_the_version_is_a_line() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"etcd-pd {etcd_pd.__version__}\n"


def test_without_click_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['click'] = None; from etcd_pd.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr == "etcd-pd needs click: pip install 'etcd-pd[agent]'\n"


def test_the_command_line_loads_nothing_heavy() -> None:
    program = "import sys, etcd_pd.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "grpc", "etcd3", "rich", "aiohttp", "google"}


@pytest.mark.parametrize(("given", "told"), [(None, "-event_engine_client"), ("", ""), ("another", "another")])
def test_grpc_is_told_of_its_threads_when_an_agent_imports_it(given: str | None, told: str) -> None:
    program = (
        "import os, sys; from etcd_pd.cli.app import cli\n"
        "class Tell:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'grpc': sys.exit('told ' + os.environ.get('GRPC_EXPERIMENTS', 'nothing'))\n"
        "sys.meta_path.insert(0, Tell()); cli(['agent'])"
    )
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    environ |= {} if given is None else {"GRPC_EXPERIMENTS": given}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=30)
    assert done.stderr.endswith(f"told {told}\n")
