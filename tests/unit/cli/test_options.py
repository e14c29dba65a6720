"""Settings dataclasses as command line options."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from etcd_pd.cli.logs import LogSettings
from etcd_pd.cli.look import LookSettings
from etcd_pd.cli.options import settings_options, to_environ
from etcd_pd.config import AgentSettings, EtcdSettings, option_name
from etcd_pd.errors import ConfigError
from etcd_pd.reference.engine.settings import DecodeSettings, PrefillSettings
from etcd_pd.reference.stack.settings import StackSettings

SETTINGS = [AgentSettings, EtcdSettings, DecodeSettings, PrefillSettings, LogSettings, LookSettings, StackSettings]


def call(cls: type[Any], *arguments: str, **environ: str) -> tuple[Result, list[Any]]:
    """Run a command that takes ``cls``; its result and the settings that it was given."""
    given: list[Any] = []

    @click.command()
    @settings_options("settings", cls)
    def command(settings: Any) -> None:
        given.append(settings)

    return CliRunner().invoke(command, arguments, env=environ), given


@pytest.mark.parametrize("cls", SETTINGS)
def test_defaults_are_the_dataclass_own(cls: type[Any]) -> None:
    result, (settings,) = call(cls)
    assert result.exit_code == 0
    assert settings == cls() or cls is AgentSettings and settings.socket_path == cls().socket_path


@pytest.mark.parametrize("cls", SETTINGS)
def test_help_names_flag_variable_and_meaning_of_every_field(cls: type[Any]) -> None:
    text = "".join(call(cls, "--help")[0].output.split())  # without the places where lines are broken
    for setting in flat_fields(cls):
        name = option_name(setting)
        assert f"--{name.replace('_', '-')}" in text
        assert f"[envvar:ETCD_PD_{name.upper()}" in text
        assert "".join(setting.metadata["help"].split()) in text


def flat_fields(cls: type[Any]) -> list[Any]:
    found: list[Any] = []
    for setting in fields(cls):
        default = setting.default_factory() if callable(setting.default_factory) else None
        found += flat_fields(type(default)) if is_dataclass(default) else [setting]
    return found


def test_flags_and_variables_reach_nested_settings() -> None:
    arguments = ("--etcd", "http://a:1, http://b:2", "--allowed-uids", "10,20", "--socket-mode", "0660")
    _, (settings,) = call(AgentSettings, *arguments, ETCD_PD_ROOT="/cell", ETCD_PD_SESSION_TTL_SECONDS="7")
    assert settings.etcd.endpoints == ("http://a:1", "http://b:2")
    assert settings.allowed_uids == (10, 20)
    assert settings.socket_mode == 0o660
    assert settings.root == "/cell"
    assert settings.session_ttl_seconds == 7


def test_a_flag_wins_over_the_environment() -> None:
    _, (settings,) = call(AgentSettings, "--root", "/flag", ETCD_PD_ROOT="/environment")
    assert settings.root == "/flag"


@pytest.mark.parametrize(
    ("arguments", "flag", "rule"),
    [
        (["--session-ttl-seconds", "1"], "--session-ttl-seconds / ETCD_PD_SESSION_TTL_SECONDS", "2..3600"),
        (["--etcd", "tcp://x"], "--etcd / ETCD_PD_ETCD", "http://HOST:PORT"),
        (["--etcd", ""], "--etcd / ETCD_PD_ETCD", "at least one"),
        (["--root", "no-slash"], "--root / ETCD_PD_ROOT", "start with a slash"),
        (["--socket-mode", "777"], "--socket-mode / ETCD_PD_SOCKET_MODE", "0600 or 0660"),
        (["--socket-mode", "rw"], "--socket-mode", "not a file mode"),
        (["--allowed-uids", "root"], "--allowed-uids", "not a list of integers"),
        (["--session-ttl-seconds", "soon"], "--session-ttl-seconds", "not a valid integer"),
    ],
)
def test_a_broken_rule_is_a_usage_error_that_names_flag_and_rule(arguments: list[str], flag: str, rule: str) -> None:
    result, given = call(AgentSettings, *arguments)
    assert result.exit_code == 2
    assert flag in result.output
    assert rule in result.output
    assert not given


def test_a_secret_is_not_shown() -> None:
    @dataclass(frozen=True)
    class Secretive:
        token: str = field(default="hunter2", metadata={"help": "a token", "secret": True})

    assert "hunter2" not in call(Secretive, "--help")[0].output


def test_switches_choices_and_required_values() -> None:
    @dataclass(frozen=True)
    class Mixed:
        size: int = field(metadata={"help": "how many"})
        fast: bool = field(default=False, metadata={"help": "in a hurry"})
        colour: str = field(default="red", metadata={"help": "which", "choices": ("red", "blue")})

    assert call(Mixed, "--size", "3", "--fast", ETCD_PD_COLOUR="blue")[1] == [Mixed(3, True, "blue")]
    assert call(Mixed, "--size", "3", "--no-fast", ETCD_PD_FAST="true")[1] == [Mixed(3)]
    assert "--size" in call(Mixed)[0].output and call(Mixed)[0].exit_code == 2
    assert call(Mixed, "--size", "3", "--colour", "green")[0].exit_code == 2


def test_a_rule_over_several_fields_names_what_the_error_names() -> None:
    @dataclass(frozen=True)
    class Pair:
        low: int = field(default=1, metadata={"help": "lowest"})
        high: int = field(default=2, metadata={"help": "highest"})

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ConfigError("range", "low must not be above high")

    result, _ = call(Pair, "--low", "5")
    assert result.exit_code == 2
    assert "range: low must not be above high" in result.output


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = AgentSettings(
        etcd=EtcdSettings(endpoints=("http://a:1", "http://b:2"), username="u", password="p"),
        agent_id="one",
        allowed_uids=(1, 2),
        socket_mode=0o660,
        registration_timeout_seconds=1.5,
    )
    assert call(AgentSettings, **to_environ(settings))[1] == [settings]


def test_help_names_the_flag_that_is_the_default() -> None:
    @dataclass(frozen=True)
    class Switches:
        shut: bool = field(default=False, metadata={"help": "a switch"})
        opened: bool = field(default=True, metadata={"help": "another"})

    text = "".join(call(Switches, "--help")[0].output.split())
    assert "default:no-shut]" in text
    assert "default:opened]" in text
