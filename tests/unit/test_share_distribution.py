"""SGLang's environment takes torch from this one, with the libraries that a CUDA build of it requires."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "share_distribution.py"


def install(site: Path, name: str, files: list[str], requires: tuple[str, ...] = ()) -> None:
    """Make a distribution as pip leaves it."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(f"whose = {site.name!r}")
    info.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0", *(f"Requires-Dist: {one}" for one in requires)]
    (info / "METADATA").write_text("\n".join(lines))
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The site-packages of the environment that takes."""
    site = tmp_path / "taker" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    return site


def test_what_a_cuda_build_requires_comes_with_it(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "giver"
    cuda = ("made-nvidia-blas; sys_platform == 'linux'", "made-nvidia-dnn", "made-shared", "made-absent; extra == 'x'")
    install(source, "made-torch", ["made_torch/__init__.py"], cuda)
    install(source, "made-nvidia-blas", ["made_nvidia/blas/__init__.py"])
    install(source, "made-nvidia-dnn", ["made_nvidia/dnn/__init__.py"])
    install(source, "made-shared", ["made_shared.py"])
    install(target, "made-shared", ["made_shared.py"])
    command = [sys.executable, str(SCRIPT), "made-torch", str(tmp_path / "taker")]
    environ = {**os.environ, "PYTHONPATH": str(source)}
    for _ in range(2):  # the second time it replaces its own links
        subprocess.run(command, env=environ, check=True, timeout=50)
    program = "import made_torch, made_nvidia.blas, made_nvidia.dnn, made_shared; print(made_shared.whose)"
    taken = subprocess.check_output(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(target)}, text=True, timeout=50
    )
    assert taken == "site-packages\n", "what the taker has of its own stays its own"
