"""The chart under test: rendered by real Helm, as objects that can be looked at."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "etcd-pd"
SHAPES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
NAMESPACE, RELEASE = "prod", "cell"
#: Where the images are, without which the chart refuses; a test's own values go before it.
IMAGES = {"imageRegistry": "registry.example.com/team"}
#: From the oldest that the chart allows to the newest whose schemas kubernetes-validate brings.
KUBERNETES = tuple(f"1.{minor}.0" for minor in range(29, 38))

Object = dict[str, Any]

DASHBOARD: Object = json.loads((CHART / "files" / "dashboard.json").read_text())


@cache
def binaries() -> Path:
    """The directory with helm, helm3 and kubectl."""
    done = subprocess.run([ROOT / "scripts" / "helm-binary"], capture_output=True, text=True, timeout=300, check=True)
    return Path(done.stdout.strip())


def run(*command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command's result, whatever it is."""
    return subprocess.run(
        [str(word) for word in command], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def template(shape: str = "", values: Mapping[str, Any] | None = None, **more: Any) -> str:
    """The chart rendered with a file of ci/, and further values; ``more`` as below.

    Raises:
        AssertionError: Helm refuses; it says why.
    """
    done = try_template(shape, values, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def try_template(
    shape: str = "",
    values: Mapping[str, Any] | None = None,
    *,
    helm: str = "helm",
    options: tuple[str, ...] = (),
    chart: Path = CHART,
    release: str = RELEASE,
) -> subprocess.CompletedProcess[str]:
    """The same, for values that Helm may refuse."""
    files = ("--values", CHART / "ci" / f"{shape}.yaml") if shape else ()
    command = (binaries() / helm, "template", release, chart, "--namespace", NAMESPACE)
    return run(*command, *files, "--values", "-", *options, stdin=_yaml(values))


def notes(values: Mapping[str, Any]) -> str:
    """What Helm prints after an installation with these values; nothing is installed, and no cluster asked."""
    command = (binaries() / "helm", "install", RELEASE, CHART, "--namespace", NAMESPACE)
    done = run(*command, "--dry-run=client", "--values", "-", stdin=_yaml(values))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def _yaml(values: Mapping[str, Any] | None) -> str:
    return yaml.safe_dump({"global": IMAGES, **(values or {})})


@cache
def rendered(shape: str) -> Objects:
    """The objects of a shape."""
    return Objects(template(shape))


class Objects:
    """Rendered objects."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.all: list[Object] = [each for each in yaml.safe_load_all(text) if each]

    def of(self, kind: str) -> list[Object]:
        """Those of a kind."""
        return [each for each in self.all if each["kind"] == kind]

    @property
    def installed(self) -> list[Object]:
        """What an installation makes: all but hooks."""
        return [each for each in self.all if "helm.sh/hook" not in each["metadata"].get("annotations", {})]

    def jobs(self) -> list[Object]:
        """The Jobs of an installation."""
        return [each for each in self.installed if each["kind"] == "Job"]

    def one(self, kind: str, name: str) -> Object:
        """The one of a kind whose name is the release's with ``name`` behind it."""
        full = f"{RELEASE}-etcd-pd-{name}" if name else f"{RELEASE}-etcd-pd"
        found = [each for each in self.of(kind) if each["metadata"]["name"] == full]
        assert len(found) == 1, f"{len(found)} objects {kind}/{full}"
        return found[0]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Every pod that will be: what makes it, and its template (metadata and spec)."""
        for each in self.all:
            spec = each.get("spec", {})
            where = f"{each['kind']}/{each['metadata']['name']}"
            if each["kind"] == "Pod":
                yield where, each
            elif each["kind"] == "CronJob":
                yield where, spec["jobTemplate"]["spec"]["template"]
            elif each["kind"] == "LeaderWorkerSet":
                yield where, spec["leaderWorkerTemplate"]["workerTemplate"]
            elif "template" in spec:
                yield where, spec["template"]

    def instances(self) -> dict[str, Object]:
        """The templates of the engine pods, by role; of a role with groups, that of its first."""
        found: dict[str, Object] = {}
        for each in self.of("Deployment"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            found.setdefault(labels.get("etcd-pd/role", ""), each["spec"]["template"])
        return {role: found[role] for role in ("prefill", "decode")}


def dashboard_queries() -> Iterator[str]:
    """What Grafana's dashboard asks Prometheus for: every panel's expressions, and the variables' queries."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def containers(pod: Object) -> list[Object]:
    """All containers of a pod."""
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def container(pod: Object, name: str) -> Object:
    """A container by its name."""
    return next(each for each in containers(pod) if each["name"] == name)


def environment(container: Object) -> dict[str, str]:
    """The variables of a container that have plain values."""
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


def overlay(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of values laid over another, level by level."""
    both = [key for key in more if isinstance(more[key], Mapping) and isinstance(base.get(key), Mapping)]
    return {**base, **more, **{key: overlay(base[key], more[key]) for key in both}}
