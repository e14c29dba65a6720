"""docs/integrations.md says what is so: its tests exist, and its command lines are understood by whom they are for."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from etcd_pd.cli.app import cli
from etcd_pd.sglang import plugin as plugin
from tests.sglang.conftest import Sglang

TEXT = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
LINES = "".join(re.findall(r"^```\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)).replace("\\\n", " ").splitlines()


def names_of_tests() -> set[str]:
    """Every test with SGLang's classes and with its engine, with and without its file."""
    names: set[str] = set()
    here = Path(__file__).parent
    for path in (*here.glob("test_*.py"), *here.with_name("engine").glob("test_*.py")):
        found = {part.name for part in ast.parse(path.read_text()).body if isinstance(part, ast.FunctionDef)}
        names |= found | {f"{path.name}::{name}" for name in found}
    return names


def test_every_test_that_the_table_names_exists() -> None:
    named = re.findall(r"\[((?:test_\w+\.py::)?test_\w+)\]", TEXT)
    assert len(named) > 40
    assert set(named) <= names_of_tests()


def test_every_row_of_the_table_is_backed_by_the_real_engine_or_says_why_not() -> None:
    engine = "".join(path.read_text() for path in Path(__file__).parent.with_name("engine").glob("test_*.py"))
    table = TEXT[TEXT.index("| behaviour |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 20
    for row in table:
        real = row.split(" | ")[-1].removesuffix(" |")
        if real.startswith("yes"):
            assert any(f"def {name}(" in engine for name in re.findall(r"\[(test_\w+)\]", row)), row
        else:
            assert re.match(r"no: .{10}", real), row


@pytest.mark.parametrize("line", [line for line in LINES if "sglang.launch_server" in line])
def test_sglang_understands_its_launch_lines(sglang: Sglang, line: str) -> None:
    words = shlex.split(line)
    parsed = sglang.start()("parse", arguments=words[words.index("sglang.launch_server") + 1 :])
    assert parsed["disaggregation_mode"] in ("prefill", "decode")
    if parsed["disaggregation_mode"] == "prefill":
        assert (parsed["attn_dp_size"], parsed["load_balance_method"]) == (4, "total_tokens")
        assert parsed["disaggregation_bootstrap_port"] == 8998


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("etcd-pd ")])
def test_etcd_pd_understands_its_command_lines(line: str) -> None:
    name, *arguments = shlex.split(line.removesuffix(" &"))[1:]
    command = cli.commands[name]
    assert command.make_context(name, arguments, parent=click.Context(cli)).params


def test_the_releases_that_are_said_to_be_tested() -> None:
    for version in plugin.TESTED_VERSIONS:
        assert version in TEXT
