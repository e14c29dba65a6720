"""docs/performance.md and its plots, from the result files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from . import harness, markdown
from .goals import Results
from .plots import draw
from .prose import HEAD, NOTHING, OTHERS, SUBJECTS, TRIED
from .tables import Table, goal_table, tables

DOCS = harness.ROOT / "docs"


def load_all(directory: Path = harness.RESULTS) -> dict[str, dict[str, Any]]:
    """Every result file that is there, by name."""
    found = {path.stem: harness.load(path.stem, directory) for path in sorted(directory.glob("*.json"))}
    return {name: content for name, content in found.items() if content}


def page(results: Results, plots: Mapping[str, str]) -> str:
    """The page; ``plots`` are files under docs/performance/, by result file."""
    ours = [name for name in SUBJECTS if name in results]
    sglang = next((results[name]["versions"].get("sglang") for name in ours), None)
    parts = [HEAD.format(sglang=sglang or "0.5.23")]
    if ours:
        parts.append(_measured_on(results, ours))
    else:
        parts.append(NOTHING)
    parts.append("## Goals\n\n" + _markdown(goal_table(results)))
    links = [line for name, line in OTHERS.items() if name in results]
    if links:
        parts.append("More: " + " ".join(links) + "\n")
    for name in ours:
        title, text = SUBJECTS[name]
        parts.append(f"## {title}\n\n{text}\n")
        if name in plots:
            parts.append(f"![{title}](performance/{plots[name]})\n")
        parts += [f"**{table.title}**\n\n{_markdown(table)}" for table in tables(name, results)]
    if "profile" in ours:
        parts.append(TRIED)
    return "\n".join(parts)


def _measured_on(results: Results, names: list[str]) -> str:
    """The machine and the versions of each result file, once where they are the same."""
    lines: dict[str, list[str]] = {}
    for name in names:
        machine, versions = results[name]["machine"], results[name]["versions"]
        text = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}; "
            f"etcd's data on {machine['etcd_data']}. "
            + ", ".join(f"{package} {version}" for package, version in versions.items())
        )
        lines.setdefault(text, []).append(name)
    if len(lines) == 1:
        return f"Measured on: {next(iter(lines))}.\n"
    return "".join(f"- {', '.join(subjects)}: {text}.\n" for text, subjects in lines.items())


def _markdown(table: Table) -> str:
    return markdown.table(table.columns, table.rows, figures=table.title != "Goals") + "\n"


def write_page(docs: Path = DOCS, results: Path = harness.RESULTS) -> Path:
    """Write the page and its plots from the kept results."""
    found = load_all(results)
    path = docs / "performance.md"
    path.write_text(page(found, draw(found, docs / "performance")))
    return path


def show(results: Results, console: Console) -> None:
    """All tables, in the terminal."""
    for table in (*(table for name in SUBJECTS for table in tables(name, results)), goal_table(results)):
        shown = RichTable(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number == 0 or table.title == "Goals" else "right")
        for cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)
