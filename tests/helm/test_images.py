"""The images hold what pods need, run as nobody in particular, and bring nothing of the machine that built them."""

from __future__ import annotations

import json

import pytest

from etcd_pd import __version__
from tests.helm.chart import run

pytestmark = [pytest.mark.helm, pytest.mark.integration, pytest.mark.timeout(1500)]

RUN = ("docker", "run", "--rm", "--read-only", "--network=none", "--cap-drop=ALL")
#: What the build stages had.
TRACES = ("/src", "/opt/etcd-pd/pip.conf", "/etc/pip.conf", "/tmp/ca.crt")


@pytest.mark.parametrize("image", ["agent", "engine"])
def test_images_are_labelled_and_run_as_nobody(image: str, images: dict[str, str]) -> None:
    (found,) = json.loads(run("docker", "image", "inspect", images[image]).stdout)
    assert found["Config"]["User"] == "65532:65532"
    assert found["Config"]["Entrypoint"] == ["etcd-pd"]
    assert found["Config"]["Labels"]["org.opencontainers.image.version"] == __version__
    assert not any("PIP" in variable or "PROXY" in variable.upper() for variable in found["Config"]["Env"])


@pytest.mark.parametrize("image", ["agent", "engine"])
def test_images_bring_nothing_of_the_build(image: str, images: dict[str, str]) -> None:
    program = f"import os; print([path for path in {TRACES} if os.path.exists(path)])"
    done = run(*RUN, "--entrypoint", "python3", images[image], "-c", program)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("image", "package"), [("agent", "grpcio"), ("engine", "torch")])
def test_images_name_what_is_in_them_when_asked(image: str, package: str, images: dict[str, str]) -> None:
    done = run(*RUN, "--entrypoint", "cat", images[image], "/opt/etcd-pd/share/sbom.cdx.json")
    bill = json.loads(done.stdout)
    assert bill["bomFormat"] == "CycloneDX"
    named = {each["name"]: each["version"] for each in bill["components"]}
    asked = f"from importlib.metadata import version; print(version('{package}'))"
    assert named[package] == run(*RUN, "--entrypoint", "python3", images[image], "-c", asked).stdout.strip()
    assert "pip" not in named and "cyclonedx-bom" not in named


def test_the_agent_image_has_what_agents_and_jobs_run(images: dict[str, str]) -> None:
    for words in (["agent"], ["certs"], ["etcd-init"], ["etcd-member"], ["status"]):
        assert run(*RUN, images["agent"], *words, "--help").returncode == 0
    done = run(*RUN, "--entrypoint", "python3", images["agent"], "-c", "import torch")
    assert "No module named 'torch'" in done.stderr, "it stays small"


def test_the_engine_image_has_engine_and_router(images: dict[str, str]) -> None:
    assert run(*RUN, images["engine"], "prefill", "--help").returncode == 0
    assert run(*RUN, "--entrypoint", "sglang-router", images["engine"], "launch", "--help").returncode == 0


def test_the_engine_image_can_trace(images: dict[str, str]) -> None:
    program = "from etcd_pd.reference.engine import spans; print(spans.exporter(over_otlp=True))"
    done = run(*RUN, "--entrypoint", "python3", images["engine"], "-c", program)
    assert "OTLPSpanExporter" in done.stdout, done.stderr
