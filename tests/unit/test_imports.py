"""Who may import whom, read from the source: the layers of the design stay layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import etcd_pd

ROOT = Path(etcd_pd.__file__).parent

#: From the bottom up. A folder imports from those below it only; what stands in one row does not know each other.
FLOORS = [
    {"errors"},
    {"wire"},
    {"config"},
    {"core", "client", "telemetry"},
    {"store"},
    {"agent", "sglang", "kubernetes"},
    {"reference"},
    {"cli"},
]
#: What a folder leaves alone although it lies below.
KEEPS_FROM = {
    "core": {"config"},
    "agent": {"client"},
    "sglang": {"core", "store"},
    "reference": {"agent", "sglang", "kubernetes"},
}
#: Names that pods and engines of version 0.1 may have written down, for one release.
OLD_PLACES = {"aio": "client", "drain": "client", "health": "client", "integrations": "sglang"}

#: Module names that stand in several folders: the same thing, once for each.
SHARED_NAMES = {
    "agent": "the agent, and the command that runs it",
    "certs": "a pod's certificates, and the command that makes them",
    "connection": "the two ends of one socket",
    "decode": "decode's side: of the client, of SGLang, of the reference engine",
    "errors": "the package's, and what the reference engine answers",
    "health": "what a probe asks",
    "main": "from start to end",
    "messages": "between two processes: engine and agent, front and rank",
    "metrics": "what is counted",
    "prefill": "prefill's side: of the client, of SGLang, of the reference engine",
    "ranks": "an engine's ranks: behind a socket, behind the gateway",
    "requests": "HTTP requests",
    "settings": "what a command needs to know",
}
#: The longest module, in lines, and the longest function; generated stubs aside.
MODULE_LINES, FUNCTION_LINES = 300, 40
#: Those that are longer still, in lines: none may grow, and one that has become short leaves this list.
LONG_MODULES: dict[str, int] = {
    "client/decode.py": 320,
    "reference/engine/prefill.py": 397,
    "reference/engine/decode.py": 347,
    "reference/engine/rank_pool.py": 346,
    "reference/engine/front.py": 313,
}

#: The modules of old places.
OLD = {*OLD_PLACES, *(f"{part}.py" for part in OLD_PLACES)}

#: By third-party module, the only files that may import it.
ONLY_IN: dict[str, str | tuple[str, ...]] = {
    "torch": ("reference/engine/", "sglang/torch_group.py"),
    "transformers": "reference/engine/",
    "etcd3": "store/one_member.py",
    "grpc": "store/",
    "google": "store/etcdrpc/",
    "tenacity": "store/",
    "prometheus_client": "telemetry/metrics.py",
    "sglang": "sglang/",
    "opentelemetry": "reference/engine/spans.py",
}
STANDARD_LIBRARY_ONLY = ["__init__", "client", "config", "core", "errors", "wire"]

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
MODULES = {
    ".".join(["etcd_pd", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if "proto" not in path.parts
}
PARTS = sorted({part_of(path.relative_to(ROOT).as_posix()) for path in ROOT.rglob("*.py")})


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def modules_in(name: str, path: Path) -> set[str]:
    """The modules of this package that one imports, in functions too."""
    found = {imported.module.replace("..", ".") for imported in imports_of(path)}
    return {
        module if module in MODULES else module.rpartition(".")[0] for module in found if module.startswith("etcd_pd")
    }


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and its docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return (function.end_lineno or 0) - first.lineno + 1


def test_only_the_public_names_lie_on_top() -> None:
    folders = {part for part in PARTS if (ROOT / part).is_dir()}
    assert set(PARTS) - folders - set(OLD_PLACES) == {"__init__", "__main__", "config", "errors"}
    assert folders - set(OLD_PLACES) == set().union(*FLOORS) - {"config", "errors"}


@pytest.mark.parametrize("part", sorted(set().union(*FLOORS)))
def test_a_folder_imports_only_from_floors_below(part: str) -> None:
    below = set().union(*FLOORS[: floor_of(part)]) - KEEPS_FROM.get(part, set())
    broken = [
        str(found)
        for found, names in INTERNAL
        if part_of(found.file) == part
        and names
        and names[0] not in below | {part}
        and names[0] not in etcd_pd.__all__
        and names[0] != "__version__"
    ]
    assert broken == []


@pytest.mark.parametrize(("old", "new"), OLD_PLACES.items())
def test_an_old_place_holds_nothing_but_the_way_to_the_new_one(old: str, new: str) -> None:
    found = [names for imported, names in INTERNAL if part_of(imported.file) == old]
    assert found
    assert all(names[0] == new for names in found)
    assert sum(len(path.read_text().splitlines()) for path in ROOT.glob(f"{old}*/**/*.py")) < 20


@pytest.mark.parametrize("part", ["reference", "sglang", "cli"])
def test_what_uses_the_library_uses_public_names(part: str) -> None:
    broken = [
        str(found)
        for found, names in INTERNAL
        if part_of(found.file) == part
        and names[:1] != [part]
        and any(name.startswith("_") and not name.startswith("__") for name in names)
    ]
    assert broken == []


def test_no_module_imports_in_a_circle() -> None:
    sorter = TopologicalSorter({name: modules_in(name, path) - {name} for name, path in MODULES.items()})
    sorter.prepare()  # raises CycleError with the circle in it


def test_a_module_name_that_stands_twice_means_the_same() -> None:
    own = [path for path in MODULES.values() if path.stem != "__init__" and path.relative_to(ROOT).parts[0] not in OLD]
    doubled = {path.stem for path in own if sum(other.stem == path.stem for other in own) > 1}
    assert doubled == set(SHARED_NAMES)


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}))
def test_each_folder_says_in_a_line_what_it_is(folder: Path) -> None:
    line = (ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split("\n")[0]
    assert line.endswith((".", ":")), f"{folder}/__init__.py has no docstring"


def test_modules_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES.values()}
    long = {name: count for name, count in lines.items() if count > MODULE_LINES}
    assert {name: count for name, count in long.items() if count > LONG_MODULES.get(name, 0)} == {}
    assert set(LONG_MODULES) - set(long) == set(), "these have become short"


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (lines := body_lines(node)) > FUNCTION_LINES
    ]
    assert long == []


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


def test_grpc_is_imported_where_calls_are_made_and_nowhere_else() -> None:
    files = {found.file for found in ALL if found.top in ("grpc", "etcd3")}
    modules = ("calls", "connections", "one_member", "papers", "refusals", "stream")
    assert files == {f"store/{module}.py" for module in modules}


def test_the_core_is_pure() -> None:
    assert [str(found) for found in ALL if part_of(found.file) == "core" and found.top in IMPURE] == []


def test_no_pickle_anywhere() -> None:
    assert [str(found) for found in ALL if found.top in ("pickle", "marshal", "shelve", "dill", "cloudpickle")] == []


def test_importing_the_package_loads_the_standard_library_only() -> None:
    program = (
        "import sys; before = set(sys.modules); import etcd_pd, etcd_pd.client.aio\n"
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
