"""Settings are refused where they are made, naming field and rule; secrets are never shown."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from etcd_pd.config import AgentSettings, EtcdSettings, default_socket_path, describe, option_name
from etcd_pd.errors import ConfigError


def test_the_defaults_are_valid_and_the_documented_ones() -> None:
    settings = AgentSettings()
    assert settings.session_ttl_seconds == 5
    assert settings.etcd.endpoints == ("http://127.0.0.1:2379",)
    assert settings.socket_mode == 0o600


@pytest.mark.parametrize("bootstrap", [1.0, 30.0, 300.0, 86_400.0])
def test_a_bucket_at_its_oldest_still_outlives_the_bootstrap_timeout(bootstrap: float) -> None:
    settings = AgentSettings(bootstrap_timeout_seconds=bootstrap)
    assert settings.room_ttl_seconds - settings.bucket_max_age_seconds > bootstrap
    assert settings.bucket_max_age_seconds == settings.room_ttl_seconds / 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_id", ""),
        ("agent_id", "a/b"),
        ("root", "etcd_pd"),
        ("root", "/etcd_pd/"),
        ("root", "/a\n"),
        ("socket_path", "/" + "x" * 107),
        ("session_ttl_seconds", 1),
        ("session_ttl_seconds", 4),
        ("session_ttl_seconds", 5.0),
        ("bootstrap_timeout_seconds", 0),
        ("bootstrap_timeout_seconds", float("nan")),
        ("bootstrap_timeout_seconds", float("inf")),
        ("registration_timeout_seconds", -1),
        ("instance_timeout_seconds", "10"),
        ("bucket_max_rooms", 0),
        ("batch_max_rooms", 121),
        ("queue_max_rooms", True),
        ("push_queue_max_bytes", 1),
        ("watch_silence_seconds", 0.1),
        ("startup_timeout_seconds", 0),
        ("idle_exit_seconds", -1),
        ("socket_mode", 0o666),
        ("allowed_uids", (1000,)),
    ],
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        AgentSettings(**{field: value})
    spelled = {setting.name: option_name(setting) for setting in fields(AgentSettings)}
    assert caught.value.field == spelled[field]
    assert caught.value.rule


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"endpoints": ()}, "etcd"),
        ({"endpoints": ("127.0.0.1:2379",)}, "etcd"),
        ({"endpoints": ("http://host",)}, "etcd"),
        ({"endpoints": ("http://host:port",)}, "etcd"),
        ({"endpoints": ("ftp://host:1",)}, "etcd"),
        ({"endpoints": ("http://host:1/path",)}, "etcd"),
        ({"endpoints": ("http://a:1", "https://b:1")}, "etcd"),
        ({"endpoints": ("http://a:1",), "ca_file": __file__}, "etcd"),
        ({"endpoints": ("https://a:1",), "cert_file": __file__}, "etcd_cert_file"),
        ({"endpoints": ("https://a:1",), "ca_file": "/no/such/file"}, "etcd_ca_file"),
        ({"username": "u"}, "etcd_username"),
        ({"password": "p"}, "etcd_username"),
        ({"request_timeout_seconds": 0}, "etcd_request_timeout_seconds"),
    ],
)
def test_a_bad_etcd_setting_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EtcdSettings(**settings)
    assert caught.value.field == field


def test_a_keepalive_that_fails_once_must_still_come_in_time() -> None:
    with pytest.raises(ConfigError, match="session_ttl_seconds"):
        AgentSettings(session_ttl_seconds=9, etcd=EtcdSettings(request_timeout_seconds=3.0))
    AgentSettings(session_ttl_seconds=10, etcd=EtcdSettings(request_timeout_seconds=3.0))


def test_secrets_are_not_shown() -> None:
    etcd = EtcdSettings(username="root", password="hunter2")
    settings = AgentSettings(etcd=etcd)
    assert "hunter2" not in repr(settings)
    shown = describe(settings)
    assert shown["etcd_password"] == "***"
    assert "hunter2" not in str(shown)
    assert describe(AgentSettings())["etcd_password"] == ""


def test_every_setting_has_help_and_a_spelling_of_its_own() -> None:
    names = [option_name(s) for cls in (AgentSettings, EtcdSettings) for s in fields(cls) if s.name != "etcd"]
    assert len(set(names)) == len(names)
    for cls in (AgentSettings, EtcdSettings):
        for setting in fields(cls):
            assert setting.metadata.get("help") or setting.name == "etcd", setting.name


def test_the_socket_lies_where_only_its_user_can_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_socket_path() == f"{tmp_path}/etcd-pd.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket_path().startswith("/tmp/etcd-pd-")


@pytest.mark.parametrize("endpoint", ["http://[::1]:2379", "http://etcd-0.etcd:2379", "https://10.0.0.1:2379/"])
def test_endpoints(endpoint: str) -> None:
    assert EtcdSettings(endpoints=(endpoint,)).tls == endpoint.startswith("https")


@pytest.mark.parametrize("endpoint", ["http://root:hunter2@127.0.0.1:2379", "https://user@etcd:2379"])
def test_an_endpoint_with_a_user_is_refused_without_being_shown(endpoint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EtcdSettings(endpoints=(endpoint,))
    assert "etcd_password" in str(refused.value) and "hunter2" not in str(refused.value)


@pytest.mark.parametrize("listen", ["9479", "localhost", "host:port", "127.0.0.1:65536", "a b:1"])
def test_a_metrics_address_has_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(ConfigError, match="metrics_listen"):
        AgentSettings(metrics_listen=listen)
    assert AgentSettings(metrics_listen="").metrics_listen == ""
    assert AgentSettings(metrics_listen="[::1]:0").metrics_listen == "[::1]:0"


@pytest.mark.parametrize(
    ("settings", "shows"),
    [
        ({"endpoints": ("http://etcd:2379",), "username": "u", "password": "p"}, True),
        ({"endpoints": ("http://127.0.0.1:2379", "http://etcd:2379"), "username": "u", "password": "p"}, True),
        ({"endpoints": ("http://[::1]:2379",), "username": "u", "password": "p"}, False),
        ({"endpoints": ("https://etcd:2379",), "username": "u", "password": "p"}, False),
        ({"endpoints": ("http://etcd:2379",)}, False),
    ],
)
def test_a_password_that_leaves_the_machine_in_clear_is_known(settings: dict[str, Any], shows: bool) -> None:
    assert EtcdSettings(**settings).shows_secrets is shows


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"username": "u", "password": "p", "password_file": __file__}, "etcd_password_file"),
        ({"username": "u"}, "etcd_username"),
        ({"password_file": __file__}, "etcd_username"),
        ({"username": "u", "password": "p", "token_file": __file__}, "etcd_token_file"),
        ({"token_file": "/none"}, "etcd_token_file"),
        ({"server_name": "etcd"}, "etcd_server_name"),
    ],
)
def test_secrets_and_names_that_do_not_fit_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EtcdSettings(**settings)
    assert caught.value.field == field
