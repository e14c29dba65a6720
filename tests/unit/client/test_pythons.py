"""The client is imported by engines on Python 3.10 as well."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "etcd_pd"
MODULES = [PACKAGE / "__init__.py", PACKAGE / "errors.py", *sorted((PACKAGE / "client").glob("*.py"))]
MODULES += sorted((PACKAGE / "wire").glob("*.py"))
INSTALLED = subprocess.check_output([ROOT / "scripts" / "pythons", "10"], text=True).split()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_client_holds_no_syntax_of_a_later_python(module: Path) -> None:
    ast.parse(module.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize("python", INSTALLED)
def test_the_client_is_imported_when_the_python_is_one_that_is_installed_here(python: str) -> None:
    program = "import etcd_pd, etcd_pd.client.aio, etcd_pd.client.health; print(etcd_pd.__version__)"
    done = subprocess.run([python, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
