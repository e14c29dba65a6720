"""The processes of the local stack."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from etcd_pd.cli.app import cli
from etcd_pd.errors import ConfigError
from etcd_pd.reference.stack.plan import Addresses, Service, choose_addresses, services
from etcd_pd.reference.stack.settings import StackSettings

ETCD = ["http://127.0.0.1:2379"]


def plan(settings: StackSettings) -> tuple[Addresses, list[list[Service]]]:
    at = choose_addresses(settings, ETCD, Path("/sockets"))
    return at, services(settings, at)


def value(service: Service, flag: str) -> str:
    return service.command[service.command.index(flag) + 1]


def test_stages_are_agents_then_engines_then_the_router() -> None:
    _, stages = plan(StackSettings())
    assert [[service.name for service in stage] for stage in stages] == [
        ["agent-prefill-0", "agent-decode-0", "agent-decode-1"],
        ["prefill-0", "decode-0", "decode-1"],
        ["router"],
    ]


def test_each_instance_has_an_agent_of_its_own() -> None:
    _, (agents, engines, _) = plan(StackSettings())
    sockets = [value(agent, "--socket") for agent in agents]
    assert sockets == [value(engine, "--socket") for engine in engines]
    assert len(set(sockets)) == 3


def test_everything_is_on_loopback_and_on_different_ports() -> None:
    at, stages = plan(StackSettings(decode_instances=3))
    servers = [service for stage in stages[1:] for service in stage]
    assert {value(server, "--host") for server in servers} == {"127.0.0.1"}
    router = servers[-1]
    ports = [value(server, "--port") for server in servers] + [
        str(at.bootstrap_port),
        value(router, "--prometheus-port"),
    ]
    assert value(router, "--prometheus-host") == "127.0.0.1"
    assert len(set(ports)) == len(ports)


def test_the_router_knows_every_instance() -> None:
    at, stages = plan(StackSettings())
    command = stages[-1][0].command
    prefill = command.index("--prefill")
    assert command[prefill + 1 : prefill + 3] == [at.prefill, str(at.bootstrap_port)]
    assert [command[i + 1] for i, word in enumerate(command) if word == "--decode"] == list(at.decode.values())


def test_settings_reach_the_instances(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    model = str(tmp_path)
    at, stages = plan(StackSettings(dp_size=2, policy="total_tokens", model_path=model, port=9999, root="/cell"))
    prefill, decode, _ = stages[1]
    assert (value(prefill, "--dp-size"), value(prefill, "--policy")) == ("2", "total_tokens")
    assert value(prefill, "--model-path") == value(decode, "--model-path") == model
    assert at.router == "http://127.0.0.1:9999"
    assert value(stages[0][0], "--root") == "/cell"


def test_every_command_is_one_that_etcd_pd_understands() -> None:
    _, stages = plan(StackSettings())
    for service in (service for stage in stages[:-1] for service in stage):
        assert service.command[1:3] == ["-m", "etcd_pd"]
        # what is wrong with the line is this flag and nothing before it
        output = CliRunner().invoke(cli, [*service.command[3:], "--no-such-flag"]).output
        assert "No such option" in output and "--no-such-flag" in output


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"etcd": ("https://a:1",)}, "etcd"),
        ({"etcd": ("nonsense",)}, "etcd"),
        ({"policy": "fair"}, "policy"),
        ({"dp_size": 0}, "dp_size"),
        ({"decode_instances": 0}, "decode_instances"),
        ({"port": 70000}, "port"),
        ({"model_path": "/no/such/model"}, "model_path"),
    ],
)
def test_bad_settings_name_the_field(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        StackSettings(**wrong)  # type: ignore[arg-type]
    assert refused.value.field == field
