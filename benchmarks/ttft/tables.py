"""The tables of docs/ttft.md, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from etcd_pd.reference.balance import POLICIES

from ..markdown import table
from . import published, text
from .figures import SHORTEST_PASSES, Row, spell

OURS, FOLLOW = "shortest_wait", "follow_bootstrap_room"
BELOW_FOLLOW, BELOW_ROUND_ROBIN = f"mean_below_{FOLLOW}_percent", "mean_below_round_robin_percent"
P99_BELOW_ROUND_ROBIN = "p99_below_round_robin_percent"
#: The goals of the issue, beside which the page says what was reached.
EQUAL_FROM, MIXED_RATES, MIXED_PERCENT = 2.0, (2.6, 3.2, 4.0), 20.0
_RATES = [spell(rate) for rate in published.RATES]


class Results:
    """A result file's rows, by what they are of.

    Args:
        found: the file's content.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.facts = found
        self.rows: list[Row] = found["rows"]

    def one(self, kind: str, workload: str, rate: float | str, policy: str) -> Row:
        """The row of a simulation."""
        key = (kind, workload, rate, policy)
        (row,) = (r for r in self.rows if (r["kind"], r["workload"], r["rate"], r["policy"]) == key)
        return row

    def simulated(self, workload: str, rate: float | str, policy: str) -> Row:
        """The row over many seeds."""
        return self.one("simulated", workload, rate, policy)

    def stack(self) -> dict[tuple[str, float, str], list[Row]]:
        """The full stack's rows of each case, a row a seed."""
        found: dict[tuple[str, float, str], list[Row]] = {}
        for row in self.rows:
            if row["kind"] == "stack":
                found.setdefault((row["workload"], row["rate"], row["policy"]), []).append(row)
        return found


def with_interval(figure: dict[str, float], digits: int = 0) -> str:
    """A mean and its interval."""
    return f"{figure['mean']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def headline(results: Results) -> str:
    """The published table, and what emulated compute makes of it."""
    rows = []
    for rate, follows in published.FOLLOWS_ROOM.items():
        run = [results.one("published arrivals", "equal", spell(rate), name) for name in (FOLLOW, "round_robin")]
        many = [results.simulated("equal", spell(rate), name) for name in (FOLLOW, "round_robin")]
        balanced = published.BALANCED[rate]
        rows.append(
            [
                spell(rate),
                f"{follows:.0f}",
                f"{balanced:.0f}",
                f"**{published.reduction(follows, balanced):.1f} %**",
                *(f"{row['mean_ttft_ms']['mean']:.0f}" for row in run),
                f"**{run[1][BELOW_FOLLOW]['mean']:.1f} %**",
                *(f"{row['mean_ttft_ms']['mean']:.0f}" for row in many),
                f"**{with_interval(many[1][BELOW_FOLLOW], 1)} %**",
            ]
        )
    head = ["req/s", "published: follows room", "balanced", "reduction", "emulated, published arrivals: follows room"]
    head += ["round_robin", "reduction", "emulated, many seeds: follows room", "round_robin", "reduction"]
    return table(head, rows)


def not_predicted(results: Results) -> str:
    """At how many rates the emulation's interval has the published reduction in it."""
    found = {rate: results.simulated("equal", spell(rate), "round_robin")[BELOW_FOLLOW] for rate in published.RATES}
    inside = [
        rate
        for rate, figure in found.items()
        if figure["low"]
        <= published.reduction(published.FOLLOWS_ROOM[rate], published.BALANCED[rate])
        <= figure["high"]
    ]
    return text.NOT_PREDICTED.format(inside=len(inside) or "none", rates=len(found))


def policies(results: Results, workload: str, names: Sequence[str]) -> str:
    """Mean TTFT of each policy by rate."""

    def cell(rate: float | str, name: str) -> str:
        return with_interval(results.simulated(workload, rate, name)["mean_ttft_ms"])

    return table(["req/s", *names], [[rate, *(cell(rate, name) for name in names)] for rate in _RATES])


def reductions(results: Results) -> str:
    """By how many percent each policy is below the rank that follows the room, beside the published reduction."""
    names = [name for name in POLICIES if name != FOLLOW]
    rows = []
    for rate, follows in published.FOLLOWS_ROOM.items():
        found = [results.simulated("equal", spell(rate), name)[BELOW_FOLLOW] for name in names]
        reached = published.reduction(follows, published.BALANCED[rate])
        rows.append([spell(rate), f"{reached:.1f}", *(with_interval(figure, 1) for figure in found)])
    return table(["req/s", "published (round_robin)", *names], rows)


def against_round_robin(results: Results, workload: str, names: Sequence[str]) -> str:
    """By how many percent mean and P99 are below round_robin's."""
    rows = []
    for rate in _RATES:
        cells = []
        for name in names:
            row = results.simulated(workload, rate, name)
            cells += [with_interval(row[BELOW_ROUND_ROBIN], 1), with_interval(row[P99_BELOW_ROUND_ROBIN], 1)]
        rows.append([rate, *cells])
    return table(["req/s", *(f"{name}: {what}" for name in names for what in ("mean", "P99"))], rows)


def goals(results: Results) -> str:
    """What the issue asks for, and whether it was reached."""
    finite = [rate for rate in published.RATES if EQUAL_FROM <= rate < float("inf")]
    robin = [results.simulated("equal", rate, "round_robin") for rate in finite]
    seeds = robin[0]["seeds"]
    ours = [results.simulated("equal", spell(rate), OURS) for rate in published.RATES]
    mixed = [results.simulated("mixed", rate, OURS) for rate in MIXED_RATES]
    means, p99s = ([row[which] for row in mixed] for which in (BELOW_ROUND_ROBIN, P99_BELOW_ROUND_ROBIN))
    bounds = [results.simulated("mixed", rate, SHORTEST_PASSES)[BELOW_ROUND_ROBIN]["mean"] for rate in MIXED_RATES]
    rows = [
        [
            "equal lengths: round_robin's mean TTFT is below follow_bootstrap_room's at each finite rate >= 2",
            _verdict(all(row[BELOW_FOLLOW]["low"] > 0 for row in robin)),
            f"in at least {min(row[BELOW_FOLLOW]['seeds_not_above'] for row in robin)} of {seeds} seeds at each rate",
        ],
        [
            f"equal lengths: `{OURS}` never loses to round_robin",
            _verdict(all(row[BELOW_ROUND_ROBIN]["seeds_not_above"] == seeds for row in ours)),
            f"not above it in any of {seeds} seeds at any rate: it makes the same choices",
        ],
        [
            "equal lengths: SGLang's total_requests and total_tokens do not lose to round_robin",
            _verdict(all(_holds(results, name) for name in ("total_requests", "total_tokens"))),
            "they count the prompts of the running pass, which delay nobody; see below",
        ],
        [
            f"mixed lengths: `{OURS}` is {MIXED_PERCENT:.0f} % below round_robin's mean at 2.6, 3.2 and 4 req/s",
            _verdict(all(mean["mean"] >= MIXED_PERCENT for mean in means)),
            f"{_list(mean['mean'] for mean in means)} %; the shortest passes would give {_list(bounds)} %",
        ],
        [
            f"mixed lengths: `{OURS}`'s P99 is below round_robin's there",
            _verdict(all(p99["low"] > 0 for p99 in p99s)),
            f"by {_list(p99['mean'] for p99 in p99s)} %",
        ],
    ]
    return table(["goal", "", "found"], rows)


def _holds(results: Results, name: str) -> bool:
    return all(results.simulated("equal", rate, name)[BELOW_ROUND_ROBIN]["high"] >= 0 for rate in _RATES)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _list(values: Iterable[float]) -> str:
    *most, last = (f"{value:.1f}" for value in values)
    return f"{', '.join(most)} and {last}"


def full_stack(results: Results) -> str:
    """The full stack beside the simulation of the same runs."""
    rows = []
    for (workload, rate, policy), found in results.stack().items():
        means = [row["mean_ttft_ms"] for row in found]
        expected = [row["simulated_mean_ttft_ms"] for row in found]
        apart = [100 * (mean / other - 1) for mean, other in zip(means, expected, strict=True)]
        tails = (statistics.mean(row[name] for row in found) for name in ("p99_ttft_ms", "simulated_p99_ttft_ms"))
        rows.append(
            [
                f"{workload}, {rate}",
                policy,
                len(found),
                f"{statistics.mean(means):.0f}",
                f"{statistics.mean(expected):.0f}",
                f"{statistics.mean(apart):+.1f} % ({min(apart):+.1f} to {max(apart):+.1f})",
                *(f"{tail:.0f}" for tail in tails),
            ]
        )
    if not rows:
        return "Not measured."
    head = ["lengths, req/s", "policy", "seeds", "full stack: mean TTFT", "simulated", "apart", "P99", "simulated"]
    return table(head, sorted(rows, key=lambda row: (str(row[0]), str(row[1]))))


def full_stack_reductions(results: Results) -> str:
    """What the full stack says of policies, seed by seed."""
    found, lines = results.stack(), []
    for (workload, rate, policy), rows in sorted(found.items()):
        base = found.get((workload, rate, FOLLOW if workload == "equal" else "round_robin"))
        if base is None or base is rows:
            continue
        pairs = list(zip((row["mean_ttft_ms"] for row in rows), (row["mean_ttft_ms"] for row in base), strict=True))
        cuts = [published.reduction(other, mean) for mean, other in pairs]
        below = FOLLOW if workload == "equal" else "round_robin"
        lines.append(
            f"- {workload} lengths, {rate} req/s: `{policy}` is {statistics.mean(cuts):.1f} % below `{below}`"
            f" ({min(cuts):.1f} to {max(cuts):.1f} % in {len(cuts)} seeds)"
        )
    return "\n".join(lines)


def fits(model: dict[str, Any]) -> str:
    """The fitted column beside the published one, for each structure that was tried."""
    rows: list[list[object]] = [["published", "", "", "", "", *(f"{v:.0f}" for v in published.FOLLOWS_ROOM.values())]]
    for number, fit in enumerate(model["fits"]):
        errors = [
            f"{mean:.0f} ({100 * (mean / published.FOLLOWS_ROOM[float(rate)] - 1):+.0f} %)"
            for rate, mean in fit["mean_ttft_ms"].items()
        ]
        name = f"**{fit['structure']}**" if number == 0 else fit["structure"]
        parameters = [fit["saturated_requests_per_second"], fit["unloaded_prefill_seconds"], fit["rms_log_error"]]
        rows.append([name, fit["pass_tokens"], *parameters, *errors])
    head = ["a pass costs", "pass tokens", "req/s", "unloaded s", "rms log error"]
    return table(head + [f"{rate} req/s" for rate in _RATES], rows)


def at_3_2(results: Results) -> str:
    """What else was published, beside what the emulation makes of it."""
    rows = [results.one("published arrivals", "equal", 3.2, name) for name in (FOLLOW, "round_robin")]
    throughputs, p99s = ([row[name]["mean"] for row in rows] for name in ("requests_per_second", "p99_ttft_ms"))
    return (
        f"\nAt 3.2 req/s the published throughputs are {_pair(published.THROUGHPUT_AT_3_2, 2)} req/s, emulated "
        f"{_pair(throughputs, 2)}; the published P99s {_pair(published.P99_AT_3_2)} ms, emulated {_pair(p99s)} ms."
    )


def _pair(values: Sequence[float], digits: int = 0) -> str:
    return " and ".join(f"{value:.{digits}f}" for value in values)


def saturates_early(model: dict[str, Any]) -> str:
    """Why the prediction misses near saturation, where it does."""
    fitted, served = model["parameters"]["saturated_requests_per_second"], published.THROUGHPUT_AT_3_2[1]
    return text.SATURATES_EARLY.format(fitted=fitted, served=served) if fitted < served else ""


def measured_on(results: Results) -> str:
    """The machine, and what took part."""
    machine, versions = results.facts["machine"], results.facts["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"\nMachine: {machine['cpu']}, {machine['cores']} cores. Versions: {named}."
