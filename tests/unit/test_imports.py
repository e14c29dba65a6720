"""Who may import whom, read from the source: the layers of the design stay layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import etcd_pd

ROOT = Path(etcd_pd.__file__).parent

#: What everybody may build on: values, errors, settings, and the client.
PUBLIC = {"aio", "balance", "client", "config", "errors", "model"}
#: Processes and terminals, for what starts or shows something.
TOOLS = {"console", "embedded", "http_server", "http_limits", "metrics", "process", "probe", "tether"}

#: By part of the package, the parts that it may import. The core's half is design, the rest keeps it from growing back.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "model": {"errors"},
    "keys": {"errors", "model"},
    "protocol": {"errors"},
    "config": {"errors", "model"},
    "core": {"errors", "model", "keys", "records"},
    "store": {"errors", "keys", "records", "config"},
    "client": {"errors", "model", "protocol"},
    "aio": {"errors", "model", "client"},
    "http_limits": set(),
    "http_server": {"http_limits"},
    "plain_http": {"http_limits"},
    "metrics": {"config", "plain_http"},
    "agent": {"errors", "model", "keys", "records", "protocol", "config", "core", "store", "metrics"},
    "__init__": {"errors", "model", "client"},
    "balance": PUBLIC,
    "engine": PUBLIC | TOOLS,
    "integrations": PUBLIC,
    "gateway": PUBLIC | {"http_server", "http_limits", "integrations", "metrics"},
    "visit": {"errors", "protocol"},
    "drain": {"config", "errors", "protocol", "visit"},
    "health": {"config", "errors", "visit"},
    "tether": set(),
    "probe": set(),
    "console": set(),
    "process": {"errors", "tether"},
    "embedded": {"errors", "probe", "process", "records"},
    "cluster": PUBLIC | TOOLS | {"keys", "store"},
    "stack": PUBLIC | TOOLS | {"engine", "store"},
    "__main__": {"cli"},
}

#: By third-party module, the only files that may import it.
ONLY_IN: dict[str, str | tuple[str, ...]] = {
    "torch": ("engine/", "integrations/torch_group.py"),
    "transformers": "engine/",
    "etcd3": "store/etcd.py",
    "grpc": "store/",
    "google": "store/etcdrpc/",
    "tenacity": "store/",
    "prometheus_client": "metrics.py",
    "sglang": "integrations/",
    "opentelemetry": "engine/spans.py",
}
STANDARD_LIBRARY_ONLY = [
    *("__init__", "aio", "balance", "client", "config", "core", "errors", "keys", "model"),
    *("plain_http", "probe", "process", "protocol", "records", "tether", "visit"),
]

#: What would make the core wait, look at a clock, or speak.
IMPURE = {
    "asyncio",
    "threading",
    "time",
    "socket",
    "logging",
    "random",
    "os",
    "subprocess",
    "select",
    "uuid",
    "datetime",
}


class Import(NamedTuple):
    file: str
    line: int
    module: str

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def part_of(file: str) -> str:
    """``core`` for core/watch.py, ``keys`` for keys.py."""
    return file.partition("/")[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[Import]:
    file = path.relative_to(ROOT).as_posix()
    package = ["etcd_pd", *Path(file).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield Import(
                    file, node.lineno, ".".join([*base, *(node.module or "").split("."), alias.name]).strip(".")
                )


ALL = [found for path in sorted(ROOT.rglob("*.py")) for found in imports_of(path)]
INTERNAL = [(found, found.module.replace("..", ".").split(".")[1:]) for found in ALL if found.top == "etcd_pd"]
PARTS = sorted({part_of(path.relative_to(ROOT).as_posix()) for path in ROOT.rglob("*.py")})


@pytest.mark.parametrize("part", [part for part in PARTS if part != "cli"])
def test_a_part_imports_only_what_its_layer_may(part: str) -> None:
    assert part in MAY_IMPORT, f"say in this test what {part} may import"
    allowed = MAY_IMPORT[part] | {part}
    broken = [
        str(found)
        for found, names in INTERNAL
        if part_of(found.file) == part
        and names
        and names[0] not in allowed
        and names[0] not in etcd_pd.__all__
        and names[0] != "__version__"
    ]
    assert broken == []


@pytest.mark.parametrize("part", ["balance", "engine", "gateway", "integrations", "stack", "cli"])
def test_what_uses_the_library_uses_public_names(part: str) -> None:
    broken = [
        str(found)
        for found, names in INTERNAL
        if part_of(found.file) == part
        and names[:1] != [part]
        and any(name.startswith("_") and not name.startswith("__") for name in names)
    ]
    assert broken == []


def test_nothing_below_the_command_line_imports_it() -> None:
    broken = [
        str(found)
        for found, names in INTERNAL
        if names[:1] == ["cli"] and part_of(found.file) not in ("cli", "__main__")
    ]
    assert broken == []


@pytest.mark.parametrize("part", STANDARD_LIBRARY_ONLY)
def test_the_engine_s_half_needs_the_standard_library_only(part: str) -> None:
    broken = [
        str(found)
        for found in ALL
        if part_of(found.file) == part and found.top != "etcd_pd" and found.top not in sys.stdlib_module_names
    ]
    assert broken == []


@pytest.mark.parametrize(("module", "place"), ONLY_IN.items())
def test_a_heavy_module_has_its_place(module: str, place: str | tuple[str, ...]) -> None:
    importers = [found for found in ALL if found.top == module]
    assert importers, f"nothing imports {module}: this rule is out of date"
    assert [str(found) for found in importers if not found.file.startswith(place)] == []


def test_grpc_is_imported_where_etcd3_is_and_nowhere_else() -> None:
    files = {found.file for found in ALL if found.top in ("grpc", "etcd3")}
    assert files == {"store/etcd.py"}


def test_the_core_is_pure() -> None:
    assert [str(found) for found in ALL if part_of(found.file) == "core" and found.top in IMPURE] == []


def test_no_pickle_anywhere() -> None:
    assert [str(found) for found in ALL if found.top in ("pickle", "marshal", "shelve", "dill", "cloudpickle")] == []


def test_importing_the_package_loads_the_standard_library_only() -> None:
    program = (
        "import sys; before = set(sys.modules); import etcd_pd, etcd_pd.aio\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(loaded - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "['etcd_pd']"


def test_importing_the_package_loads_no_event_loop() -> None:
    """An engine pays for every import, in every process of every node."""
    program = "import sys, etcd_pd; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"


def test_all_lists_the_public_names() -> None:
    submodules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    public = {name for name in vars(etcd_pd) if not name.startswith("_")} - submodules
    assert sorted(public) == sorted(etcd_pd.__all__)


def test_all_is_sorted_and_has_no_doubles() -> None:
    assert etcd_pd.__all__ == sorted(set(etcd_pd.__all__))
