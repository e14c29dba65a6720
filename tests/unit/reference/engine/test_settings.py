"""Settings are checked where they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from etcd_pd import ConfigError
from etcd_pd.config import describe
from etcd_pd.reference.engine.settings import DecodeSettings, EngineSettings, PrefillSettings


def test_defaults_are_loopback_and_named() -> None:
    prefill, decode = PrefillSettings(), DecodeSettings()
    assert prefill.host == decode.host == "127.0.0.1"
    assert prefill.addresses == ("127.0.0.1:8998", "localhost:8998")
    assert prefill.kv_address == "127.0.0.1"
    assert prefill.instance_id.endswith("-30001")
    assert decode.instance_id.endswith("-31001")
    assert describe(decode)["max_batch"] == 32


@pytest.mark.parametrize(
    ("cls", "values", "field"),
    [
        (PrefillSettings, {"port": 0}, "port"),
        (PrefillSettings, {"port": 65536}, "port"),
        (PrefillSettings, {"port": True}, "port"),
        (PrefillSettings, {"bootstrap_port": -1}, "bootstrap_port"),
        (PrefillSettings, {"instance": "a b"}, "instance"),
        (PrefillSettings, {"instance": "a/b"}, "instance"),
        (PrefillSettings, {"instance": "a\nb"}, "instance"),
        (PrefillSettings, {"dp_size": 0}, "dp_size"),
        (PrefillSettings, {"policy": "random"}, "policy"),
        (PrefillSettings, {"device": "tpu"}, "device"),
        (PrefillSettings, {"dtype": "int8"}, "dtype"),
        (PrefillSettings, {"compute": "guessed"}, "compute"),
        (PrefillSettings, {"model_path": "/nowhere"}, "model_path"),
        (PrefillSettings, {"host": "0.0.0.0"}, "bootstrap_hosts"),
        (PrefillSettings, {"host": "0.0.0.0", "bootstrap_hosts": ("10.0.0.1",)}, "bootstrap_hosts"),
        (PrefillSettings, {"kv_host": "0.0.0.0"}, "kv_host"),
        (PrefillSettings, {"bootstrap_hosts": ("a/b",)}, "bootstrap_hosts"),
        (PrefillSettings, {"chunk_tokens": 0}, "chunk_tokens"),
        (PrefillSettings, {"emulated_lock_step": True}, "emulated_lock_step"),
        (PrefillSettings, {"emulated_shared_tokens_per_second": -1}, "emulated_shared_tokens_per_second"),
        (PrefillSettings, {"emulated_pass_tokens": 0}, "emulated_pass_tokens"),
        (PrefillSettings, {"bootstrap_timeout_seconds": float("nan")}, "bootstrap_timeout_seconds"),
        (PrefillSettings, {"socket_path": "/" + "x" * 108}, "socket"),
        (DecodeSettings, {"max_batch": 0}, "max_batch"),
        (DecodeSettings, {"kv_timeout_seconds": 0}, "kv_timeout_seconds"),
        (DecodeSettings, {"kv_timeout_seconds": 60, "request_timeout_seconds": 30}, "request_timeout_seconds"),
        (DecodeSettings, {"emulated_decode_steps_per_second": "fast"}, "emulated_decode_steps_per_second"),
    ],
)
def test_a_broken_rule_names_its_field(cls: type[EngineSettings], values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(**values)
    assert caught.value.field == field


def test_addresses_have_brackets_when_the_host_is_one_of_ipv6() -> None:
    assert PrefillSettings(instance="p", host="fd00::5", socket_path="/run/x.sock").addresses == ("[fd00::5]:8998",)


def test_a_wildcard_host_needs_the_addresses_that_others_use() -> None:
    settings = PrefillSettings(host="0.0.0.0", bootstrap_hosts=("pod-1", "10.0.0.7"), kv_host="10.0.0.7")
    assert settings.addresses == ("pod-1:8998", "10.0.0.7:8998")
    assert settings.kv_address == "10.0.0.7"


def test_which_instances_need_no_registry() -> None:
    assert PrefillSettings().rank_follows_from_request
    assert PrefillSettings(dp_size=4, policy="follow_bootstrap_room").rank_follows_from_request
    assert not PrefillSettings(dp_size=4).rank_follows_from_request


def test_a_model_directory_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert PrefillSettings(model_path=str(tmp_path)).model_path == str(tmp_path)
