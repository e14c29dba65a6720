"""The page that follows from results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness, report
from benchmarks.plots import draw
from benchmarks.prose import SUBJECTS
from benchmarks.tables import goal_table, tables
from tests.unit.benchmarks.results import made_up


def test_without_results_the_page_says_so_and_names_the_goals() -> None:
    text = report.page({}, {})
    assert "No results are kept yet" in text and text.count("not measured") == len(goal_table({}).rows)


def test_every_subject_has_its_section_and_its_tables() -> None:
    results = made_up()
    text = report.page(results, {"blocking": "blocking.svg"})
    for name, (title, _) in SUBJECTS.items():
        assert f"## {title}" in text and tables(name, results), name
    assert "![How long the scheduler is held up](performance/blocking.svg)" in text
    assert "paper" in text and "sglang 0.0.0" in text


def test_every_line_of_a_table_has_as_many_cells() -> None:
    results = made_up()
    for name in SUBJECTS:
        for table in tables(name, results):
            assert {len(cells) for cells in table.rows} == {len(table.columns)}, table.title


def test_other_pages_are_linked_where_their_results_are() -> None:
    results = made_up()
    assert "ttft.md" not in report.page(results, {})
    assert "[ttft.md](ttft.md)" in report.page({**results, "ttft": {"rows": []}}, {})


def test_plots_are_the_same_bytes_for_the_same_figures(tmp_path: Path) -> None:
    first, second = (draw(made_up(), tmp_path / name) for name in ("first", "second"))
    assert first == second and first
    for file in first.values():
        content = (tmp_path / "first" / file).read_bytes()
        assert content == (tmp_path / "second" / file).read_bytes()
        assert b"<dc:date>" not in content


def test_the_page_is_what_the_kept_results_say(tmp_path: Path) -> None:
    (tmp_path / "performance").mkdir()
    written = report.write_page(tmp_path)
    assert written.read_text() == (report.DOCS / "performance.md").read_text(), "python -m benchmarks --page"


def test_results_are_kept_with_what_they_were_measured_on(tmp_path: Path) -> None:
    harness.save("made-up", [{"case": "x"}], tmp_path)
    found = harness.load("made-up", tmp_path)
    assert found and found["rows"] == [{"case": "x"}] and found["machine"]["cores"] and found["versions"]["etcd_pd"]
    assert harness.load("nothing", tmp_path) is None
