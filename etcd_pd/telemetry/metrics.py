"""Prometheus metrics: counted in plain Python where it is hot, turned into families only when somebody scrapes.

A process keeps numbers and :class:`Histogram` objects, and gives :func:`render` or :func:`serve` a function that makes
families of them. So a busy event loop pays an addition or two for what it counts, and no lock. Names follow
Prometheus' conventions: base units, ``_total`` on counters, no label that grows with the number of rooms.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import PROCESS_COLLECTOR
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..config import split_address
from . import http as plain_http
from .http import Answer

__all__ = [
    "CONTENT_TYPE",
    "Histogram",
    "Metric",
    "counter",
    "counters",
    "counters_by",
    "gauge",
    "gauges",
    "histogram",
    "histograms",
    "latencies",
    "render",
    "serve",
    "state",
]

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST
Collect = Callable[[], Iterable[Metric]]

#: Counters within a factor of two: a quantile read off the histogram is at most 9 % (2 ** (1/8)) too high.
STEPS = 8


class Histogram:
    """A histogram with logarithmic buckets, cheap enough to count every room.

    Args:
        first: upper bound of the first bucket, in the unit of what is observed.
        octaves: how many times the bound doubles until the last bucket; what is larger is counted above it.
    """

    __slots__ = ("_counts", "_first", "sum")

    def __init__(self, first: float, octaves: int) -> None:
        self._first = first
        self._counts = [0] * (octaves * STEPS + 2)  # and one for all that is larger
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, as often as it occurred."""
        ratio = value / self._first
        index = math.ceil(math.log2(ratio) * STEPS) if ratio > 1 else 0
        self._counts[min(index, len(self._counts) - 1)] += times
        self.sum += value * times

    def observe_each(self, values: Iterable[float]) -> None:
        """Count many values, more cheaply than one by one."""
        counts, last, total = self._counts, len(self._counts) - 1, 0.0
        scale, log2, ceil = STEPS, math.log2, math.ceil
        shift = log2(self._first) * STEPS
        for value in values:
            total += value
            index = ceil(log2(value) * scale - shift) if value > 0 else 0
            counts[0 if index < 0 else last if index > last else index] += 1
        self.sum += total

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    def quantile(self, q: float) -> float | None:
        """Upper bound of the bucket that holds this quantile; None where nothing was counted."""
        return quantile(self.counts(), q)

    def copy(self) -> Histogram:
        """What it holds now."""
        copied = Histogram(self._first, (len(self._counts) - 2) // STEPS)
        copied._counts[:], copied.sum = self._counts, self.sum
        return copied

    def since(self, earlier: Histogram) -> Histogram:
        """What was counted after ``earlier``, a copy of this one, was taken."""
        found = self.copy()
        found._counts[:] = [now - before for now, before in zip(self._counts, earlier._counts, strict=True)]
        found.sum -= earlier.sum
        return found

    def counts(self) -> list[tuple[float, int]]:
        """Upper bound of each bucket that holds something, and how much; the last bound also stands for all above."""
        *within, last, above = self._counts
        return [(self._first * 2 ** (at / STEPS), n) for at, n in enumerate([*within, last + above]) if n]

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts at each doubling of the bound, as Prometheus wants them."""
        found = []
        for end in range(1, len(self._counts), STEPS):
            bound = self._first * 2 ** ((end - 1) / STEPS)
            found.append((f"{bound:.10g}", float(sum(self._counts[:end]))))
        return [*found, ("+Inf", float(self.count))]


def quantile(counts: Sequence[tuple[float, int]], q: float) -> float | None:
    """The smallest bound under which this share of what was counted lies; None where nothing was.

    Args:
        counts: upper bounds, rising, and how much each of their buckets holds, as of :meth:`Histogram.counts`.
        q: the share, between 0 and 1.
    """
    wanted, seen = math.ceil(q * sum(n for _, n in counts)), 0
    for bound, n in counts:
        seen += n
        if seen and seen >= wanted:
            return bound
    return None


def latencies() -> Histogram:
    """A histogram for seconds: 0.1 ms to 105 s."""
    return Histogram(1e-4, 20)


def counter(name: str, help: str, value: float) -> Metric:
    """A counter; ``name`` ends in ``_total``."""
    return CounterMetricFamily(name, help, value=value)


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    """A counter for each value of one label."""
    return counters_by(name, help, [label], {(key,): value for key, value in values.items()})


def counters_by(name: str, help: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """A counter for each combination of labels."""
    family = CounterMetricFamily(name, help, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def gauge(name: str, help: str, value: float) -> Metric:
    """A number that goes up and down."""
    return GaugeMetricFamily(name, help, value=value)


def gauges(name: str, help: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """A number for each combination of labels."""
    family = GaugeMetricFamily(name, help, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def state(name: str, help: str, present: str, all_states: Iterable[str]) -> Metric:
    """1 for the present state, 0 for each of the others."""
    return gauges(name, help, ["state"], {(one,): float(one == present) for one in all_states})


def histogram(name: str, help: str, found: Histogram) -> Metric:
    """A histogram."""
    return HistogramMetricFamily(name, help, buckets=found.buckets(), sum_value=found.sum)


def histograms(name: str, help: str, label: str, found: Mapping[str, Histogram]) -> Metric:
    """A histogram for each value of one label."""
    family = HistogramMetricFamily(name, help, labels=[label])
    for key, one in found.items():
        family.add_metric([key], one.buckets(), one.sum)
    return family


def render(collect: Collect) -> bytes:
    """What a scrape answers: the families, and what the process itself uses."""
    return generate_latest(_Families([*collect(), *PROCESS_COLLECTOR.collect()]))


async def serve(address: str, collect: Collect) -> asyncio.Server | None:
    """Answer ``GET /metrics`` at ``HOST:PORT`` on this event loop, so that what is collected needs no lock.

    Returns:
        the server; None, and a warning in the log, where the address cannot be had: metrics never keep a service down.
    """
    host, port = split_address("metrics_listen", address)
    try:
        server = await plain_http.serve(host, port, {"/metrics": lambda: Answer(CONTENT_TYPE, render(collect))})
    except OSError as exc:
        log.warning("no metrics at %s: %s", address, exc.strerror or exc)
        return None
    log.info("metrics at http://%s:%d/metrics", host, server.sockets[0].getsockname()[1])
    return server


class _Families:
    """As much of a registry as the exposition needs."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
