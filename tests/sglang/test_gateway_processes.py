"""SGLang's own prefill and decode processes, unmodified and without the plug-in, with the gateway between them."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.sglang.conftest import GatewayProcess, MakeGateway, Peer, Sglang, healthy, resolved
from tests.support.ports import free_port
from tests.support.waiting import wait_until

METHODS = ["round_robin", "follow_bootstrap_room", "total_requests", "total_tokens"]
ROOMS = [9193475737872407803 - 3 * number for number in range(12)]


def start_prefill(sglang: Sglang, gateway: GatewayProcess, dp_size: int, **options: Any) -> list[Peer]:
    return [sglang.prefill(gateway.port, dp, dp_size, **options) for dp in range(dp_size)]


def test_sglang_logs_one_bind_error_and_goes_on(sglang: Sglang, make_gateway: MakeGateway) -> None:
    """The gateway has the port already when SGLang starts its own bootstrap server there."""
    gateway = make_gateway("prefill-0")
    launcher = sglang.start()
    launcher("serve", host="127.0.0.1", port=gateway.port)

    def errors() -> list[str]:
        return [line for line in launcher("log") if "address already in use" in line]

    wait_until(errors, "SGLang says that the port is taken")
    assert len(errors()) == 1
    assert launcher("pid") == launcher.pid
    prefill = sglang.prefill(gateway.port)
    assert not [line for line in prefill("log") if line.startswith(("ERROR", "WARNING"))]
    assert healthy(gateway.port)


@pytest.mark.parametrize("plain_dp", [False, True], ids=["DP attention", "plain DP"])
def test_topology_and_endpoints(sglang: Sglang, make_gateway: MakeGateway, plain_dp: bool) -> None:
    gateway = make_gateway("prefill-0")
    for dp in range(2):
        sglang.prefill(gateway.port, dp, 2, plain_dp=plain_dp)
    decode = sglang.decode()
    address = f"127.0.0.1:{gateway.port}"
    assert decode("ensure", address=address)
    info = decode("known_topology", address=address)
    assert (info["dp_size"], info["attn_tp_size"], info["follow_bootstrap_room"]) == (2, 1, False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("served_by", ["gateway", "SGLang"])
def test_a_full_dispatch(sglang: Sglang, make_gateway: MakeGateway, method: str, served_by: str) -> None:
    """SGLang's DP controller chooses, its senders register, its decode queue learns the same ranks."""
    if served_by == "gateway":
        port = make_gateway("prefill-0").port
    else:
        port = free_port()
        sglang.server(port)
    ranks = [sglang.prefill(port, dp, 4, method=method) for dp in range(4)]
    chosen = sglang.start()("dispatch", method=method, dp_size=4, rooms=ROOMS)
    decode = sglang.decode()
    for room, rank in zip(ROOMS, chosen, strict=True):
        assert ranks[rank]("take", room=room, address=f"127.0.0.1:{port}") == "Bootstrapping"
        decode("arrive", host="127.0.0.1", port=port, room=room)
    assert [resolved(decode, room) for room in ROOMS] == [("WaitingForInput", rank) for rank in chosen]
    assert set(chosen) == {0, 1, 2, 3}


def test_decode_before_prefill(sglang: Sglang, make_gateway: MakeGateway) -> None:
    gateway = make_gateway("prefill-0")
    decode = sglang.decode()
    decode("arrive", host="127.0.0.1", port=gateway.port, room=7)
    assert decode("step")["7"] == ["Bootstrapping", None]
    ranks = start_prefill(sglang, gateway, 2)
    assert decode("step")["7"] == ["Bootstrapping", None]
    ranks[1]("take", room=7, address=f"127.0.0.1:{gateway.port}")
    assert resolved(decode, 7) == ("WaitingForInput", 1)


def test_decodes_prefetch_gets_the_same(sglang: Sglang, make_gateway: MakeGateway) -> None:
    gateway = make_gateway("prefill-0")
    ranks = start_prefill(sglang, gateway, 2)
    decode = sglang.decode()
    decode("ensure", address=f"127.0.0.1:{gateway.port}")
    for room in (7, 8):
        decode("arrive", host="127.0.0.1", port=gateway.port, room=room)
        ranks[room % 2]("take", room=room, address=f"127.0.0.1:{gateway.port}")
    wait_until(
        lambda: all(s == "WaitingForInput" for s, _ in decode("step", prefetch=True).values()), "both are resolved"
    )


def test_a_conflict_is_logged_and_changes_nothing(sglang: Sglang, make_gateway: MakeGateway) -> None:
    gateway = make_gateway("prefill-0")
    ranks = start_prefill(sglang, gateway, 2)
    for rank in ranks:
        rank("take", room=7, address=f"127.0.0.1:{gateway.port}")
    assert [line for line in ranks[1]("log") if "Failed to register prefill dp_rank: 409" in line]
    decode = sglang.decode()
    decode("arrive", host="127.0.0.1", port=gateway.port, room=7)
    assert resolved(decode, 7) == ("WaitingForInput", 0)


def test_a_gateway_restart_in_the_middle(sglang: Sglang, make_gateway: MakeGateway) -> None:
    gateway = make_gateway("prefill-0")
    ranks = start_prefill(sglang, gateway, 2)
    ranks[1]("take", room=7, address=f"127.0.0.1:{gateway.port}")
    gateway.stop(signal.SIGKILL)
    gateway.start()
    decode = sglang.decode()
    decode("arrive", host="127.0.0.1", port=gateway.port, room=7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    ranks[0]("take", room=8, address=f"127.0.0.1:{gateway.port}")
    decode("arrive", host="127.0.0.1", port=gateway.port, room=8)
    assert resolved(decode, 8) == ("WaitingForInput", 0)


def test_decodes_heartbeat_learns_of_a_dead_engine(sglang: Sglang, make_gateway: MakeGateway) -> None:
    """The gateway outlives the engine, so its /health must say so."""
    gateway = make_gateway("prefill-0", "--engine-health-interval-seconds=0.1")
    ranks = start_prefill(sglang, gateway, 2)
    ranks[1]("take", room=7, address=f"127.0.0.1:{gateway.port}")
    decode = sglang.decode()
    decode("arrive", host="127.0.0.1", port=gateway.port, room=7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
    decode("start_heartbeat", interval=0.2)
    for rank in ranks:
        rank.kill()
    wait_until(lambda: decode("step")["7"][0] == "Failed", "decode has failed the room")
    assert "Lost connection with prefill instance" in decode("received_failure", room=7)


def test_a_new_topology_is_used_when_a_prefill_restarts_with_another(sglang: Sglang, make_gateway: MakeGateway) -> None:
    gateway = make_gateway("prefill-0", "--engine-health-interval-seconds=0.1")
    for rank in start_prefill(sglang, gateway, 4):
        rank.kill()
    ranks = start_prefill(sglang, gateway, 2, page_size=16)
    decode = sglang.decode(page_size=16)
    assert decode("ensure", address=f"127.0.0.1:{gateway.port}")
    assert decode("known_topology", address=f"127.0.0.1:{gateway.port}")["dp_size"] == 2
    ranks[1]("take", room=7, address=f"127.0.0.1:{gateway.port}")
    decode("arrive", host="127.0.0.1", port=gateway.port, room=7)
    assert resolved(decode, 7) == ("WaitingForInput", 1)
