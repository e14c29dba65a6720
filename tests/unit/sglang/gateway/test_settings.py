"""What a gateway is told, and what it refuses to be told."""

from __future__ import annotations

from typing import Any

import pytest

from etcd_pd import ConfigError
from etcd_pd.config import split_address
from etcd_pd.sglang.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"instance": ""}, "instance"),
        ({"listen": "8998"}, "listen"),
        ({"listen": "host:"}, "listen"),
        ({"listen": "host:70000"}, "listen"),
        ({"addresses": ("a",)}, "addresses"),
        ({"engine_health_failures": 0}, "engine_health_failures"),
        ({"linger_seconds": 7200.0}, "linger_seconds"),
        ({"query_wait_max_seconds": -1.0}, "query_wait_max_seconds"),
        ({"tls_cert_file": "/x"}, "gateway_cert_file"),
        ({"tls_cert_file": "/nowhere", "tls_key_file": "/nowhere"}, "gateway_cert_file"),
    ],
)
def test_what_breaks_a_rule_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GatewaySettings(**{"instance": "p", **wrong})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("listen", "addresses", "expected"),
    [
        ("10.0.0.7:8998", (), ("10.0.0.7:8998",)),
        ("0.0.0.0:8998", (), ()),
        ("[::]:8998", ("p.svc:8998",), ("p.svc:8998",)),
        ("h:1", ("h:1", "g:1"), ("h:1", "g:1")),
    ],
)
def test_requests_may_name_it_by_its_own_address_unless_that_is_a_wildcard(
    listen: str, addresses: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert GatewaySettings(instance="p", listen=listen, addresses=addresses).all_addresses == expected


def test_an_address_has_a_host_and_a_port() -> None:
    assert split_address("x", "[fe80::1]:8998") == ("fe80::1", 8998)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(GatewaySettings(instance="p", token="secret"))


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("10.0.0.5:8998", "10.0.0.5"),
        ("0.0.0.0:8998", "127.0.0.1"),
        ("[::]:8998", "[::1]"),
        ("[fd00::5]:8998", "[fd00::5]"),
        ("prefill-0:8998", "prefill-0"),
    ],
)
def test_the_engine_is_asked_where_it_listens(listen: str, host: str) -> None:
    assert GatewaySettings(instance="p", listen=listen).engine_host == host
