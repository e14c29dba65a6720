"""The plots of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .goals import Results, digits
from .harness import Row, new_figure, save_svg, spread

OURS_COLOUR, SGLANG_COLOUR, FLOOR_COLOUR = "#2b6cb0", "#c05621", "#4a5568"


def draw(results: Results, directory: Path) -> dict[str, str]:
    """Write the plots of what was measured; file name by result file."""
    drawn = {}
    for name, plot in _PLOTS.items():
        if results.get(name, {}).get("rows") and (figure := plot(results)):
            save_svg(figure, directory / f"{name}.svg")
            drawn[name] = f"{name}.svg"
    return drawn


def _colour(case: str) -> str:
    return SGLANG_COLOUR if case.startswith("SGLang") else FLOOR_COLOUR if case.startswith("raw") else OURS_COLOUR


def _rows(results: Results, name: str, **wanted: Any) -> list[Row]:
    return [row for row in results[name]["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def _ranges(axes: Any, rows: list[Row], value: Callable[[Row], Mapping[str, float]], label: str) -> None:
    """A row each: the median of the rounds as a dot and a number, a line from the lowest to the highest."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for place, row in enumerate(reversed(rows)):
        found, colour = value(row), _colour(row["case"])
        axes.plot([found["min"], found["max"]], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(found["median"], place, "o", color=colour)
        text = {"textcoords": "offset points", "xytext": (0, 5), "ha": "center", "fontsize": 8}
        axes.annotate(digits(found["median"]), (found["median"], place), **text)
    axes.set_yticks(range(len(rows)), [row["case"] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xscale("log")
    # no bars: a logarithmic axis has no zero that they could begin at
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: digits(tick)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def _p50(figure: str) -> Callable[[Row], Mapping[str, float]]:
    def of(row: Row) -> Mapping[str, float]:
        return spread(row[figure]["p50_by_round"])

    return of


def _blocking(results: Results) -> Any:
    figure, (axes,) = new_figure(height=1.8)
    _ranges(axes, _rows(results, "blocking", mode="prefill spins"), _p50("wall_us"), "register() blocks for: p50, us")
    return figure


def _latency(results: Results) -> Any:
    shown = [
        (mode, rate, rows)
        for mode in ("both spin", "both idle")
        for rate in (300, 1000)
        if (rows := [row for row in _rows(results, "latency", mode=mode, rate=rate) if "due_ms" in row])
    ]
    if not shown:
        return None
    figure, axes = new_figure(rows=len(shown), height=0.9 + 0.22 * sum(len(rows) + 2 for _, _, rows in shown))
    for place, (mode, rate, rows) in zip(axes, shown, strict=True):
        _ranges(place, rows, _p50("due_ms"), "due to resolved: p50, ms")
        place.set_title(f"{rate:,} rooms/s, {mode}", loc="left", fontsize=9)
    return figure


def _saturation(results: Results) -> Any:
    figure, (axes,) = new_figure(height=2.6)
    _ranges(axes, _rows(results, "saturation"), lambda row: row["rooms_per_second"], "rooms/s acknowledged")
    return figure


def _fanout(results: Results) -> Any:
    figure, (left, right) = new_figure(columns=2, height=3.0)
    rows = _rows(results, "fanout")
    agents = [row["agents"] for row in rows]
    for percentile, style in (("p50", "-o"), ("p99", "--o")):
        left.plot(agents, [row["wait_ms"][percentile] for row in rows], style, color=OURS_COLOUR, label=percentile)
    left.set(xlabel="watching agents", ylabel="register() to resolved, ms", ylim=(0, None), xticks=agents)
    left.legend()
    right.plot(agents, [row["cpu_us_per_room"]["all"] for row in rows], "-o", color=OURS_COLOUR)
    right.set(xlabel="watching agents", ylabel="CPU per room, us", ylim=(0, None), xticks=agents)
    return figure


_PLOTS: Mapping[str, Callable[[Results], Any]] = {
    "blocking": _blocking,
    "latency": _latency,
    "saturation": _saturation,
    "fanout": _fanout,
}
