"""The methods of SGLang's that the plug-in stands at, in the releases that it may be used with."""

from __future__ import annotations

import ast
import zipfile

import pytest

from etcd_pd.sglang.plugin import HOOK_POINTS, TESTED_VERSIONS, USED_NAMES

from .processes import MADE

RELEASES = ("0.5.20", "0.5.21", "0.5.22", "0.5.23")


def find(wheel: zipfile.ZipFile, name: str) -> ast.AST | None:
    """Where a dotted name is defined; None where it is not."""
    parts = name.split(".")
    paths = (("/".join(parts[:count]) + ".py", parts[count:]) for count in range(len(parts), 0, -1))
    path, inside = next((path, inside) for path, inside in paths if path in wheel.namelist())
    found: ast.AST | None = ast.parse(wheel.read(path))
    for part in inside:
        found = next((one for one in getattr(found, "body", ()) if part in _names(one)), None)
    return found


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("release", RELEASES)
def test_every_hook_point_is_there_with_its_parameters(release: str) -> None:
    [path] = (MADE / "wheels").glob(f"sglang-{release}-*.whl")
    with zipfile.ZipFile(path) as wheel:
        for point in HOOK_POINTS:
            found = find(wheel, point.target)
            assert isinstance(found, ast.FunctionDef), point.target
            parameters = tuple(one.arg for one in (*found.args.posonlyargs, *found.args.args))
            assert parameters[: len(point.parameters)] == point.parameters, point.target
        assert [name for name in USED_NAMES if find(wheel, name) is None] == []


def test_the_release_that_the_engine_is_of_is_among_them() -> None:
    assert set(TESTED_VERSIONS) <= set(RELEASES)
