"""SGLang's own load generator, in this project's environment: ``python -m benchmarks.ttft.generator OPTIONS``.

The options are those of ``python -m sglang.bench_serving``. Importing ``sglang`` itself needs its GPU packages, which
the generator does not: so the package and the sub-packages on its way are registered empty, with the path of the wheel
in SGLang's environment (``scripts/sglang-env``); all of ``sglang.benchmark`` is the installed, unmodified code.
"""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
import types
from pathlib import Path
from typing import Any

SITE_PACKAGES = next((Path(__file__).parents[2] / ".venv-sglang" / "lib").glob("python3*/site-packages"), None)
#: Packages whose ``__init__`` would import what is not here.
_EMPTY = ("sglang", "sglang.srt", "sglang.srt.utils", "sglang.srt.disaggregation")


def prepare(site_packages: Path) -> None:
    """From here on, ``sglang.benchmark`` can be imported in this process."""
    for name in _EMPTY:
        package = types.ModuleType(name)
        package.__path__ = [str(site_packages.joinpath(*name.split(".")))]
        sys.modules[name] = package
    constants = types.ModuleType("sglang.srt.disaggregation.utils")
    source = (site_packages / "sglang" / "srt" / "disaggregation" / "utils.py").read_text("utf-8")
    vars(constants)["FAKE_BOOTSTRAP_HOST"] = _constant(source, "FAKE_BOOTSTRAP_HOST")
    sys.modules[constants.__name__] = constants
    if importlib.util.find_spec("datasets") is None:
        # data sets that nobody asks for here would be loaded with it
        datasets = types.ModuleType("datasets")
        vars(datasets)["load_dataset"] = None
        sys.modules["datasets"] = datasets
    modules: dict[str, Any] = sys.modules
    modules["torchvision"] = None  # SGLang's fits no torch here, and transformers would load it where it is found
    # behind this environment's own packages: what only the generator needs is taken from SGLang's
    sys.path.append(str(site_packages))


def _constant(source: str, name: str) -> object:
    """A literal that a module assigns to a name."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise RuntimeError(f"SGLang's disaggregation/utils.py has no {name} any more")


def main() -> None:
    """Run it."""
    if SITE_PACKAGES is None:
        sys.exit("no .venv-sglang: scripts/sglang-env makes it")
    prepare(SITE_PACKAGES)
    runpy.run_module("sglang.benchmark.serving", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
