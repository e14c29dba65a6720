"""What ``etcd-pd up`` shows: tables of a run, and the commands to try on a running stack."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..reference.stack.demo import Comparison, Outcome, load_by_rank
from ..reference.stack.plan import PREFILL, Addresses
from ..reference.stack.requests import Answer
from .console import plain_table

_REQUEST_COLUMNS = (
    "#:",
    "room:",
    "rank:",
    "lease:",
    "revision:",
    "resolved:",
    "TTFT:",
    "tokens:",
)
_BAR = 30


def request_table(outcome: Outcome) -> Table:
    """One row a request: who served it, and how etcd knew."""
    table = plain_table("requests; milliseconds from register() to resolved, and to the first token", *_REQUEST_COLUMNS)
    for prompt in outcome.prompts:
        label = f"{prompt.number}{' SSE' if prompt.streamed else ''}"
        answer = outcome.answers.get(prompt.number)
        table.add_row(label, *(_cells(answer) if answer else ("failed",)))
    return table


def load_table(outcome: Outcome, dp_size: int) -> Table:
    """What each rank was given."""
    load = load_by_rank(list(outcome.answers.values()))
    most = max((tokens for _, tokens in load.values()), default=1)
    table = plain_table("load", "dp_rank:", "requests:", "prompt tokens:", "")
    for dp_rank in range(dp_size):
        requests, tokens = load.get(dp_rank, (0, 0))
        table.add_row(str(dp_rank), str(requests), str(tokens), "█" * round(_BAR * tokens / most))
    return table


def verdict(outcome: Outcome, comparison: Comparison, problems: list[str]) -> RenderableType:
    """The checks in one line each, and what is wrong where something is."""
    count = len(outcome.prompts)
    seen = [outcome.seen[answer.room] for answer in outcome.answers.values() if answer.room in outcome.seen]
    leased = sum(room.lease_lived for room in seen)
    asked_alive = sum((room.seconds_left or 0) > 0 for room in seen)
    lines = [
        f"rooms with a key in etcd: {len(seen)}/{count}; with a live lease: {leased}/{count}"
        f" ({asked_alive} of them asked while in flight); keys left: {len(outcome.keys_left)}",
        f"disaggregated == undisaggregated: {comparison.equal}/{count}"
        f" (smallest top-2 logit margin {comparison.smallest_margin:.1e})",
    ]
    wrong = [*problems, *(f"request {number}: other tokens than the plain model's" for number in comparison.different)]
    return Group(*map(Text, lines), *(Text(f"  wrong: {what}", style="red") for what in wrong))


def what_to_try(at: Addresses, *, tiny: bool) -> str:
    """Commands for another terminal of the same user, which find the stack by themselves; ``tiny``: its model is."""
    # one that was installed here by `make` is on nobody's PATH
    program = "etcd-pd" if shutil.which("etcd-pd") else os.path.relpath(Path(sys.executable).with_name("etcd-pd"))
    body = '{"text": "The harbour wakes before the town does.", "sampling_params": {"max_new_tokens": 24}'
    header = "-H 'Content-Type: application/json'"
    nonsense = ("\nWhat comes back is nonsense: the little model has random weights. The way there is real.\n",)
    return "\n".join(
        (
            f"  curl -s {at.router}/generate {header} -d '{body}}}'",
            f"  curl -sN {at.router}/generate {header} -d '{body}, \"stream\": true}}'",
            *(nonsense if tiny else ()),
            f"  {program} status",
            f"  {program} watch",
            f"  {program} top",
            f"  {program} dashboard",
            f"  {program} doctor --fix-hints",
            f"  {program} fail rank {PREFILL} 2 --yes",
            f"  curl -s {at.metrics[f'agent-{PREFILL}']}",
        )
    )


def _cells(answer: Answer) -> tuple[str, ...]:
    return (
        str(answer.room),
        str(answer.dp_rank),
        f"{answer.lease_id:x}",
        str(answer.revision),
        _milliseconds(answer.register_to_resolved_ms),
        _milliseconds(answer.ttft_ms),
        f"{answer.prompt_tokens}+{len(answer.token_ids)}",
    )


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
