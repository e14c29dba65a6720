"""Histograms, families, and the listener that answers a scrape."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import uvloop
from hypothesis import given, strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from etcd_pd.telemetry import http as plain_http
from etcd_pd.telemetry.metrics import Histogram, counters, gauge, histogram, histograms, latencies, render, serve, state


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_right_within_a_bucket(q: float) -> None:
    draw = random.Random(8)
    values = [draw.lognormvariate(-6, 1.5) for _ in range(2000)]
    found = latencies()
    for value in values:
        found.observe(value)
    exact = sorted(values)[math.ceil(q * len(values)) - 1]
    told = found.quantile(q)
    assert told is not None and max(exact, 1e-4) <= told * 1.0001 <= max(exact, 1e-4) * 2 ** (1 / 8) * 1.001


def test_nothing_was_counted() -> None:
    assert latencies().quantile(0.5) is None
    assert latencies().count == 0


def test_what_is_too_small_or_too_large_is_counted_too() -> None:
    found = Histogram(1, 3)
    for value in (0.0, -1.0, 1.0, 8.0, 9.0, 1e12):
        found.observe(value)
    assert found.count == 6
    assert found.buckets() == [("1", 3.0), ("2", 3.0), ("4", 3.0), ("8", 4.0), ("+Inf", 6.0)]
    assert found.quantile(1.0) == 8.0


def test_a_value_on_a_bound_is_in_its_bucket() -> None:
    found = Histogram(1, 7)
    for value in (1, 2, 4, 64, 128):
        found.observe(value)
    assert [count for _, count in found.buckets()] == [1, 2, 3, 3, 3, 3, 4, 5, 5]
    assert found.sum == 199


@given(st.lists(st.floats(-1, 1e6)))
def test_many_at_once_are_counted_as_one_by_one(values: list[float]) -> None:
    one, many = latencies(), latencies()
    for value in values:
        one.observe(value)
    many.observe_each(values)
    assert many.count == one.count and many.sum == pytest.approx(one.sum)
    for (_, ours), (_, theirs) in zip(many.buckets(), one.buckets(), strict=True):
        assert abs(ours - theirs) <= sum(math.isclose(value, 2.0**k * 1e-4) for value in values for k in range(21))


def test_only_buckets_that_hold_something_are_counted() -> None:
    found = Histogram(1.0, 2)
    for value in (0.5, 1.0, 2.0, 100.0):
        found.observe(value)
    assert found.counts() == [(1.0, 2), (2.0, 1), (4.0, 1)]


def test_values_above_the_last_bound_are_counted_with_those_at_it_when_both_are_there() -> None:
    found = Histogram(1.0, 2)
    for value in (4.0, 4.0, 100.0):
        found.observe(value)
    assert found.counts() == [(4.0, 3)]


def test_since_counts_what_was_added_when_another_histogram_is_given() -> None:
    found = latencies()
    found.observe(1.0, times=3)
    before = found.copy()
    found.observe(0.01)
    added = found.since(before)
    assert added.count == 1 and added.sum == pytest.approx(0.01)
    assert found.count == 4 and before.count == 3


def families() -> Iterator[Metric]:
    seen = latencies()
    seen.observe(0.25)
    yield gauge("etcd_pd_things", "Things.", 3)
    yield counters("etcd_pd_events_total", "Events.", "outcome", {"good": 2, 'b"ad\n': 1})
    yield state("etcd_pd_mood", "Mood.", "calm", ["calm", "angry"])
    yield histogram("etcd_pd_wait_seconds", "Waits.", seen)
    yield histograms("etcd_pd_call_seconds", "Calls.", "route", {"/a": seen})


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_rendered_can_be_read_back() -> None:
    found = samples(render(families).decode())
    assert found["etcd_pd_things", ()] == 3
    assert found["etcd_pd_events_total", (("outcome", 'b"ad\n'),)] == 1
    assert found["etcd_pd_mood", (("state", "calm"),)] == 1 and found["etcd_pd_mood", (("state", "angry"),)] == 0
    assert found["etcd_pd_wait_seconds_count", ()] == 1 and found["etcd_pd_wait_seconds_sum", ()] == 0.25
    assert found["etcd_pd_wait_seconds_bucket", (("le", "0.2048"),)] == 0
    assert found["etcd_pd_wait_seconds_bucket", (("le", "0.4096"),)] == 1
    assert found["etcd_pd_call_seconds_bucket", (("le", "+Inf"), ("route", "/a"))] == 1
    assert found["process_resident_memory_bytes", ()] > 0


async def get(url: str) -> tuple[int, str]:
    """Status and body of a GET."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    return await asyncio.to_thread(ask)


@pytest.mark.asyncio
async def test_a_scrape_is_answered_and_nothing_else() -> None:
    server = await serve("127.0.0.1:0", families)
    assert server is not None
    port = server.sockets[0].getsockname()[1]
    try:
        status, text = await get(f"http://127.0.0.1:{port}/metrics?name=x")
        assert status == 200 and samples(text)["etcd_pd_things", ()] == 3
        assert (await get(f"http://127.0.0.1:{port}/"))[0] == 404
        for garbage in (b"\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        assert (await get(f"http://127.0.0.1:{port}/metrics"))[0] == 200
    finally:
        server.close()


@pytest.mark.asyncio
async def test_an_address_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    first = await serve("127.0.0.1:0", families)
    assert first is not None
    address = f"127.0.0.1:{first.sockets[0].getsockname()[1]}"
    with caplog.at_level(logging.WARNING):
        assert await serve(address, families) is None
    assert f"no metrics at {address}" in caplog.text
    first.close()


def test_an_address_that_is_taken_after_bind_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = socket.socket.bind
    faster = []

    def bind_too_late(self: socket.socket, address: tuple[str, int]) -> None:
        bind(self, address)
        other = socket.socket()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind(other, self.getsockname())
        other.listen()
        faster.append(other)

    monkeypatch.setattr(socket.socket, "bind", bind_too_late)
    with caplog.at_level(logging.WARNING):
        assert uvloop.run(serve("127.0.0.1:0", families)) is None
    assert "no metrics at 127.0.0.1:0: Address already in use" in caplog.text
    for one in faster:
        one.close()


@pytest.mark.asyncio
async def test_metrics_are_served_at_every_address_when_the_host_is_a_star() -> None:
    server = await plain_http.serve("*", 0, {"/metrics": lambda: plain_http.Answer("text/plain", b"here")})
    port = server.sockets[0].getsockname()[1]
    families = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
    for host in families:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert (await reader.read()).endswith(b"here")
        writer.close()
    server.close()
    await server.wait_closed()
