"""What is published: the same bytes from the same sources, and an install that brings what it promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import etcd_pd
from etcd_pd.reference.local.embedded import EmbeddedEtcd

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def build(out: Path) -> dict[str, bytes]:
    """Wheel and sdist, by file name."""
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, str(ROOT / "scripts" / "package.py"), str(out)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of these sources."""
    out = tmp_path_factory.mktemp("dist")
    build(out)
    (found,) = out.glob("*.whl")
    return found


def metadata(wheel: Path) -> Message:
    """A wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


class Environment:
    """A virtual environment with nothing in it but what a test installs."""

    def __init__(self, directory: Path, interpreter: str = sys.executable) -> None:
        self.python = directory / "bin" / "python"
        subprocess.run([interpreter, "-m", "venv", directory], check=True)

    def install(self, *what: str | Path) -> None:
        """pip install."""
        command = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *what]
        subprocess.run(command, check=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its interpreter, far from this checkout."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ETCD_PD_"))}
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_two_builds_are_the_same_to_the_last_byte(tmp_path: Path) -> None:
    first, second = build(tmp_path / "first"), build(tmp_path / "second")
    version = etcd_pd.__version__
    assert list(first) == [f"etcd_pd-{version}-py3-none-any.whl", f"etcd_pd-{version}.tar.gz"]
    assert first == second
    with tarfile.open(tmp_path / "first" / f"etcd_pd-{version}.tar.gz") as sdist:
        assert {member.mtime for member in sdist} == {1700000000}
        assert {(member.uid, member.uname) for member in sdist} == {(0, "")}
        assert f"etcd_pd-{version}/etcd_pd/py.typed" in sdist.getnames()


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "etcd_pd"], cwd=ROOT, text=True
    )
    assert names == {name for name in listed.split() if (ROOT / name).exists()}


def test_it_requires_nothing_unless_an_extra_is_asked_for(wheel: Path) -> None:
    required = metadata(wheel).get_all("Requires-Dist", [])
    assert required and all("extra ==" in requirement for requirement in required)
    engine = [requirement.partition(";")[0].strip() for requirement in required if 'extra == "engine"' in requirement]
    assert "transformers>=5" in engine and any(name.startswith("jinja2") for name in engine)


def interpreters() -> list[str]:
    """This interpreter, and others of the supported versions that are installed here."""
    named = [found for minor in range(10, 15) if (found := shutil.which(f"python3.{minor}"))]
    kept = [str(path) for path in Path.home().glob(".pyenv/versions/3.1[0-4].*/bin/python")]
    others = [path for path in (*named, *kept) if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]
    return [sys.executable, *others]


@pytest.mark.parametrize("interpreter", interpreters())
def test_a_bare_install_is_the_client_alone(wheel: Path, tmp_path: Path, interpreter: str) -> None:
    bare = Environment(tmp_path, interpreter)
    bare.install("--no-index", wheel)
    done = bare.run("-c", "import etcd_pd, etcd_pd.client.aio; print(etcd_pd.__version__)")
    assert (done.returncode, done.stdout.strip()) == (0, etcd_pd.__version__), done.stderr
    done = bare.run("-m", "etcd_pd", "version")
    assert done.returncode == 1 and "pip install 'etcd-pd[agent]'" in done.stderr


def test_the_agent_s_extra_brings_all_of_the_agent_and_its_tools(wheel: Path, tmp_path: Path, root: str) -> None:
    agent = Environment(tmp_path)
    agent.install("--constraint", ROOT / "constraints.txt", f"{wheel}[agent]")
    for arguments in (("version",), ("--help",), ("agent", "--help"), ("doctor", "--help")):
        done = agent.run("-m", "etcd_pd", *arguments)
        assert done.returncode == 0, done.stderr
    with EmbeddedEtcd.start() as etcd:
        cell = ("--etcd", etcd.endpoint, "--root", root)
        # a process of each kind that the extra is for: the agent, what it is asked by, and what looks at etcd
        program = "import etcd_pd; c = etcd_pd.connect(); c.decode.want('nobody', 1, timeout=9); print('asked')"
        done = agent.run("-m", "etcd_pd", "run", *cell, "--", str(agent.python), "-c", program)
        assert (done.returncode, "asked" in done.stdout) == (0, True), done.stderr
        for command in (("status",), ("rooms",), ("top", "--count", "1")):
            done = agent.run("-m", "etcd_pd", *command, *cell)
            assert done.returncode == 0, done.stderr
