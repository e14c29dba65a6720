"""What an instance counts of the prompts that its ranks serve, and what a scrape shows of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etcd_pd.telemetry.metrics import Histogram, Metric, counter, counters, counters_by, gauges, histogram, latencies

if TYPE_CHECKING:
    from etcd_pd.reference.balance import Load

    from .messages import Update

#: How a prompt ends well; how else, its error's type says.
FINISHED = "Finished"


@dataclass
class Served:
    """Totals since the start.

    Attributes:
        ended: prompts that ended, by rank and by how.
        tokens: tokens that ranks gave out, by rank.
        ttft_seconds: from a prompt's dispatch to its first token.
        kv_bytes: bytes of KV cache that decode ranks received.
        kv_seconds: from decode's asking for a KV cache to having it; what prefill still had to compute is part of it.
    """

    ended: Counter[tuple[str, ...]] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    ttft_seconds: Histogram = field(default_factory=latencies)
    kv_bytes: int = 0
    kv_seconds: Histogram = field(default_factory=latencies)

    def update(self, dp_rank: int, update: Update, first_of: float | None) -> None:
        """A rank said something; ``first_of``: when the prompt was dispatched, where these are its first tokens."""
        self.tokens[str(dp_rank)] += len(update.token_ids)
        if first_of is not None:
            self.ttft_seconds.observe(time.perf_counter() - first_of)
        if "kv_bytes" in update.meta:
            self.kv_bytes += update.meta["kv_bytes"]
            self.kv_seconds.observe(update.meta["kv_seconds"])
        if update.finish_reason is not None:
            self.end(dp_rank, FINISHED)

    def end(self, dp_rank: int, how: str) -> None:
        """A prompt ended."""
        self.ended[str(dp_rank), how] += 1


def families(served: Served, loads: Sequence[Load]) -> Iterator[Metric]:
    """Every metric of an instance."""
    ranks = [(str(dp_rank), load) for dp_rank, load in enumerate(loads)]
    labels = ["dp_rank"]
    help = "Prompts that ended, by how: Finished or an error's type."
    yield counters_by("etcd_pd_engine_prompts_total", help, [*labels, "outcome"], served.ended)
    yield gauges(
        "etcd_pd_engine_rank_prompts", "Prompts with a rank.", labels, {(rank,): load.requests for rank, load in ranks}
    )
    yield gauges(
        "etcd_pd_engine_rank_tokens", "Tokens with a rank.", labels, {(rank,): load.tokens for rank, load in ranks}
    )
    yield gauges(
        "etcd_pd_engine_rank_serving", "1 while a rank serves.", labels, {(rank,): load.serving for rank, load in ranks}
    )
    yield counters("etcd_pd_engine_tokens_total", "Tokens that ranks gave out.", "dp_rank", served.tokens)
    yield histogram("etcd_pd_engine_ttft_seconds", "From a prompt's dispatch to its first token.", served.ttft_seconds)
    yield counter("etcd_pd_engine_kv_transfer_bytes_total", "KV cache bytes received.", served.kv_bytes)
    help = "From asking for a KV cache to having it, with what prefill still had to compute."
    yield histogram("etcd_pd_engine_kv_transfer_seconds", help, served.kv_seconds)
