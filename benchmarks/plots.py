"""The plots of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .goals import Results
from .harness import Row, new_figure, save_svg

OURS_COLOUR, SGLANG_COLOUR, FLOOR_COLOUR = "#2b6cb0", "#c05621", "#4a5568"


def draw(results: Results, directory: Path) -> dict[str, str]:
    """Write the plots of what was measured; file name by result file."""
    drawn = {}
    for name, plot in _PLOTS.items():
        if results.get(name, {}).get("rows"):
            figure = plot(results)
            save_svg(figure, directory / f"{name}.svg")
            drawn[name] = f"{name}.svg"
    return drawn


def _colour(case: str) -> str:
    return SGLANG_COLOUR if case.startswith("SGLang") else FLOOR_COLOUR if case.startswith("raw") else OURS_COLOUR


def _rows(results: Results, name: str, **wanted: Any) -> list[Row]:
    return [row for row in results[name]["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def _bars(axes: Any, rows: list[Row], value: Callable[[Row], Mapping[str, float]], label: str) -> None:
    """One bar a row: the median, and a line from the lowest round to the highest."""
    rows = rows[::-1]
    found = [value(row) for row in rows]
    middle = [each["median"] for each in found]
    errors = [[each["median"] - each["min"] for each in found], [each["max"] - each["median"] for each in found]]
    places = range(len(rows))
    axes.barh(places, middle, color=[_colour(row["case"]) for row in rows], height=0.65)
    axes.errorbar(middle, places, xerr=errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    axes.set_yticks(places, [row["case"] for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)


def _p50(figure: str) -> Callable[[Row], Mapping[str, float]]:
    def of(row: Row) -> Mapping[str, float]:
        rounds = sorted(row[figure]["p50_by_round"])
        return {"median": rounds[len(rounds) // 2], "min": rounds[0], "max": rounds[-1]}

    return of


def _blocking(results: Results) -> Any:
    figure, (axes,) = new_figure(height=1.8)
    _bars(
        axes, _rows(results, "blocking", mode="prefill spins"), _p50("wall_us"), "register() blocks for: p50, us (log)"
    )
    return figure


def _latency(results: Results) -> Any:
    shown = [
        (mode, rate, rows)
        for mode in ("both spin", "both idle")
        for rate in (300, 1000)
        if (rows := _rows(results, "latency", mode=mode, rate=rate))
    ]
    figure, axes = new_figure(rows=len(shown), height=0.9 + 0.22 * sum(len(rows) + 2 for _, _, rows in shown))
    for place, (mode, rate, rows) in zip(axes, shown, strict=True):
        _bars(place, rows, _p50("wait_ms"), "register() to resolved: p50, ms (log)")
        place.set_title(f"{rate:,} rooms/s, {mode}", loc="left", fontsize=9)
    return figure


def _saturation(results: Results) -> Any:
    figure, (axes,) = new_figure(height=2.6)
    _bars(axes, _rows(results, "saturation"), lambda row: row["rooms_per_second"], "rooms/s acknowledged (log)")
    return figure


def _fanout(results: Results) -> Any:
    figure, (left, right) = new_figure(columns=2, height=2.6)
    rows = _rows(results, "fanout")
    agents = [row["agents"] for row in rows]
    for percentile, style in (("p50", "-o"), ("p99", "--o")):
        left.plot(agents, [row["wait_ms"][percentile] for row in rows], style, color=OURS_COLOUR, label=percentile)
    left.set(xlabel="watching agents", ylabel="register() to resolved, ms", ylim=(0, None), xticks=agents)
    left.legend()
    right.plot(agents, [row["cpu_us_per_room"]["all"] for row in rows], "-o", color=OURS_COLOUR)
    right.set(xlabel="watching agents", ylabel="CPU per room, all processes, us", ylim=(0, None), xticks=agents)
    return figure


_PLOTS: Mapping[str, Callable[[Results], Any]] = {
    "blocking": _blocking,
    "latency": _latency,
    "saturation": _saturation,
    "fanout": _fanout,
}
