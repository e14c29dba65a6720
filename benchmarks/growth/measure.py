"""The sweeps: one thing grows, everything else stays. Each yields rows of benchmarks/results/scaling.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from etcd_pd.wire.limits import MAX_NAME, MAX_TEXT

from ..harness import Row
from . import proxy_checks
from .engines import Plan
from .rig import INSTANCE, Setting, commit, idle, play_round, running


@dataclass(frozen=True)
class Scale:
    """How far and how long; ``QUICK`` shows that it works, ``FULL`` is what is kept.

    Attributes:
        seconds: of the part of a round that counts.
        rates: rooms a second.
        ranks: announced by one prefill instance.
        instances: prefill instances, each with an agent; with the rates at which rooms come.
        decodes: decode agents, all on this machine; with the rates.
        commits: small transactions a second, at most, with so many in flight.
        streams: watch streams without an agent, with the rates.
        proxied: decode agents behind one proxy, with the rates.
        relayed: decode agents with and without one proxy before them, with the rates.
        timeouts: the engines' bootstrap timeout, seconds, which decides the rooms' TTL.
        names: bytes of the instance's id, which is in every room's key.
        reasons: bytes of the reason of a room that fails, which is in its value.
    """

    seconds: float
    rates: tuple[float, ...]
    ranks: tuple[int, ...]
    instances: tuple[tuple[int, tuple[float, ...]], ...]
    decodes: tuple[tuple[int, tuple[float, ...]], ...]
    commits: tuple[tuple[float, int], ...]
    streams: tuple[tuple[int, tuple[float, ...]], ...]
    proxied: tuple[tuple[int, tuple[float, ...]], ...]
    relayed: tuple[tuple[int, tuple[float, ...]], ...]
    timeouts: tuple[float, ...]
    names: tuple[int, ...]
    reasons: tuple[int, ...]


FULL = Scale(
    seconds=2.0,
    rates=(100, 300, 1000, 3000, 10_000, 20_000),
    ranks=(1, 4, 16, 64, 256),
    instances=((1, (100, 300)), (4, (100, 300, 1000)), (16, (30, 100, 300)), (64, (30, 100))),
    decodes=tuple((count, (100, 300)) for count in (1, 2, 4, 8, 16, 32)),
    commits=((100, 64), (300, 64), (1000, 64), (3000, 64), (100_000, 64), (100_000, 256)),
    streams=((8, (100, 1000, 3000)), (32, (30, 100, 1000)), (128, (10, 30, 100)), (256, (10, 30))),
    proxied=((1, (100, 300)), (8, (100, 300)), (16, (30, 100))),
    relayed=((32, (10, 30, 100)), (64, (10, 30))),
    timeouts=(1, 10, 60, 300),
    names=(9, 63, MAX_NAME),
    reasons=(16, 128, MAX_TEXT),
)
QUICK = Scale(
    seconds=0.6,
    rates=(100, 1000, 3000),
    ranks=(1, 16),
    instances=((1, (100,)), (4, (100,))),
    decodes=((1, (100,)), (4, (100, 300))),
    commits=((100, 64), (1000, 64), (100_000, 64)),
    streams=((8, (100, 1000)), (32, (30, 100))),
    proxied=((4, (100, 300)),),
    relayed=((4, (30,)),),
    timeouts=(1, 300),
    names=(9, MAX_NAME),
    reasons=(16, MAX_TEXT),
)
#: Rooms a second where something else than the rate grows.
STEADY = 300.0
#: Proxies of the passes in which relays are compared: what drifts meanwhile drifts for both.
RELAY_PASSES = (0, 1, 1, 0)
#: So many times the usual seconds, as few rooms come there.
RELAY_LENGTH = 3


def rates(scale: Scale) -> Iterator[Row]:
    """Rooms a second, from one prefill agent; one decode agent with an engine and one without."""
    with running(Setting(decodes=2)) as rig:
        for rate in scale.rates:
            yield play_round(rig, Plan(rate, scale.seconds), rig.places())


def ranks(scale: Scale) -> Iterator[Row]:
    """DP ranks of one instance, each with its connection to the same agent, taking rooms in turn."""
    with running(Setting()) as rig:
        for count in scale.ranks:
            yield play_round(rig, Plan(STEADY, scale.seconds), rig.places(count))


def instances(scale: Scale) -> Iterator[Row]:
    """Prefill instances, each with an agent that writes its own transactions and holds a watch."""
    for count, at in scale.instances:
        yield from _idle_and_at(Setting(prefills=count), at, scale)


def decodes(scale: Scale) -> Iterator[Row]:
    """Decode agents, of which one has an engine that wants every room."""
    for count, at in scale.decodes:
        yield from _idle_and_at(Setting(decodes=count), at, scale)


def _idle_and_at(setting: Setting, rates: tuple[float, ...], scale: Scale, length: int = 1) -> Iterator[Row]:
    with running(setting) as rig:
        yield idle(rig, scale.seconds)
        for rate in rates:
            yield play_round(rig, Plan(rate, length * scale.seconds), rig.places())


def commits(scale: Scale) -> Iterator[Row]:
    """Transactions of one room each, as from many prefill agents at once."""
    with running(Setting()) as rig:
        for rate, in_flight in scale.commits:
            yield commit(rig, scale.seconds, rate, in_flight)


def streams(scale: Scale) -> Iterator[Row]:
    """Watch streams without an agent: etcd's fan-out beyond what agents on this machine allow."""
    with running(Setting()) as rig:
        for count, at in scale.streams:
            for rate in at:
                yield play_round(rig, Plan(rate, scale.seconds), rig.places(), count)


def proxied(scale: Scale) -> Iterator[Row]:
    """Decode agents behind one ``etcd grpc-proxy``, and streams behind it."""
    for count, at in scale.proxied:
        with running(Setting(decodes=count, proxies=1)) as rig:
            for rate in at:
                yield play_round(rig, Plan(rate, scale.seconds), rig.places())
    with running(Setting(proxies=1)) as rig:
        for count, at in scale.streams[:2]:
            for rate in at:
                yield play_round(rig, Plan(rate, scale.seconds), rig.places(), count)


def relays(scale: Scale) -> Iterator[Row]:
    """The same watching agents straight at etcd and behind one proxy, twice each; prefill agents are as the chart's."""
    for count, at in scale.relayed:
        for proxies in RELAY_PASSES:
            yield from _idle_and_at(Setting(1, count, proxies, prefill_only=True), at, scale, RELAY_LENGTH)


def ttl(scale: Scale) -> Iterator[Row]:
    """The rooms' TTL, by the engines' bootstrap timeout: for rooms that are released, and for rooms that never are."""
    for timeout in scale.timeouts:
        with running(Setting(bootstrap_timeout=timeout)) as rig:
            for release in (True, False):
                yield play_round(rig, Plan(STEADY, scale.seconds, release=release), rig.places())


def size(scale: Scale) -> Iterator[Row]:
    """What a room's key and value can grow by: the instance's id, and the reason of a room that failed."""
    with running(Setting()) as rig:
        for length in scale.names:
            places = rig.places(name=INSTANCE.ljust(length, "x"))
            yield play_round(rig, Plan(STEADY, scale.seconds), places)
        for length in scale.reasons:
            yield play_round(rig, Plan(STEADY, scale.seconds, reason="x" * length), rig.places())


SWEEPS: tuple[Callable[[Scale], Iterator[Row]], ...] = (
    rates,
    ranks,
    instances,
    decodes,
    commits,
    streams,
    proxied,
    relays,
    ttl,
    size,
    proxy_checks.checks,
)


def measure(scale: Scale, told: Callable[[Row], None]) -> Iterator[Row]:
    """Every sweep's rows, each told of as it comes."""
    for sweep in SWEEPS:
        for found in sweep(scale):
            row = {"sweep": sweep.__name__, **found}
            told(row)
            yield row
