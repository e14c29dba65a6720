"""What a scrape of a gateway shows of the requests that it answered."""

from __future__ import annotations

from typing import Any, cast

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from etcd_pd.sglang.gateway.health import EngineState, EngineWatch
from etcd_pd.sglang.gateway.ranks import Ranks
from etcd_pd.sglang.gateway.rooms import Rooms
from etcd_pd.sglang.gateway.routes import make_app


class NoRanks:
    """The ranks of an engine that has registered none."""

    def __len__(self) -> int:
        return 0

    def instance(self) -> None:
        return None


class Engine:
    """An engine that has not come yet."""

    state = EngineState.ABSENT


def app(token: str = "") -> Any:
    return make_app(cast(Ranks, NoRanks()), cast(Rooms, object()), cast(EngineWatch, Engine()), token)


@pytest.mark.asyncio
async def test_requests_are_counted_by_route_and_status() -> None:
    async with TestServer(app()) as server, ClientSession(server.make_url("/")) as session:
        for path in (
            "/health",
            "/health",
            "/route",
            "/route?prefill_dp_rank=0",
            "/no/such/thing/1",
            "/no/such/thing/2",
        ):
            async with session.get(path):
                pass
        async with session.post("/query_dp_ranks", data=b"garbage"):
            pass
        async with session.request("DELETE", "/route"):
            pass
        async with session.get("/metrics") as answer:
            assert answer.status == 200
            text = await answer.text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    counted = {
        (s.labels["route"], s.labels["code"]): s.value for s in samples if s.name == "etcd_pd_gateway_requests_total"
    }
    assert counted == {
        ("GET /health", "200"): 2,
        ("GET /route", "400"): 2,
        ("POST /query_dp_ranks", "400"): 1,
        ("other", "404"): 2,
        ("other", "405"): 1,
    }
    times = {s.labels["route"]: s.value for s in samples if s.name == "etcd_pd_gateway_request_seconds_count"}
    assert times == {"GET /health": 2, "GET /route": 2, "POST /query_dp_ranks": 1, "other": 3}
    states = {s.labels["state"]: s.value for s in samples if s.name == "etcd_pd_gateway_engine_state"}
    assert states == {"absent": 1, "starting": 0, "up": 0, "down": 0}


@pytest.mark.asyncio
async def test_metrics_need_the_token_like_everything_else() -> None:
    async with TestServer(app("secret")) as server, ClientSession(server.make_url("/")) as session:
        async with session.get("/metrics", headers={"Authorization": "Bearer wrong"}) as refused:
            assert refused.status == 401
        async with session.get("/metrics", headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200
            assert 'code="401"' in (text := await answer.text()) and "secret" not in text
