"""Where the cluster of the tests comes from: one that is there, a folder that makes one, or kind."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "kubernetes"
NODES = 3
#: Addresses of the cluster: ipv4 or ipv6 alone.
FAMILY = os.environ.get("ETCD_PD_TEST_FAMILY", "ipv4")
PATH = {"PATH": f"{ROOT / 'build' / 'bin'}:{os.environ['PATH']}"}
#: How long a cluster may take to come up, an image to be loaded onto its nodes, or all of it to end, seconds.
UP_SECONDS, LOAD_SECONDS, DOWN_SECONDS = 300.0, 900.0, 600.0
#: How often to make one, and how long kube-proxy takes to end where it does, seconds.
ATTEMPTS, PROXY_SECONDS = 3, 10.0
#: What a cluster of network namespaces changes of its host.
_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


class NoCluster(Exception):
    """None can be had here; the message says what would make one."""


class Provider(Protocol):
    """A source of clusters."""

    def up(self, family: str) -> Path:
        """A cluster of three nodes with IPv4 or IPv6 addresses alone; its kubeconfig."""

    def load(self, archive: Path) -> None:
        """Put the images of an archive, as `docker save` writes it, onto every node."""

    def recycle(self) -> None:
        """Make volumes that nobody claims any more usable again, empty, where the cluster does not do it itself."""

    def down(self) -> None:
        """Leave nothing behind."""


class Given:
    """The cluster of $KUBECONFIG, which is used and not ended; its nodes have the images, or can pull them."""

    def up(self, family: str) -> Path:
        if family != "ipv4":
            raise NoCluster(f"the cluster of $KUBECONFIG is not known to be one with {family} alone")
        return Path(os.environ["KUBECONFIG"])

    def load(self, archive: Path) -> None:
        pass

    def recycle(self) -> None:
        pass

    def down(self) -> None:
        pass


class Folder:
    """A folder with a program `cluster up N | load ARCHIVE | env | down`; nodes are network namespaces of this host.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self._program, self._family = folder / "cluster", "ipv4"
        self._found = {name: Path("/proc/sys", name).read_text() for name in _SYSCTLS}

    def up(self, family: str) -> Path:
        if os.geteuid() != 0:
            raise NoCluster(f"{self._program} needs root")
        if "kbr0" in psutil.net_if_addrs():
            raise NoCluster("a cluster of network namespaces runs on this host already (interface kbr0): end it first")
        self._family = family
        for _ in range(ATTEMPTS):
            self._run(UP_SECONDS, "up", str(NODES))
            if self._proxies_stay():
                return self._kubeconfig()
            self._run(DOWN_SECONDS, "down")
        raise NoCluster(f"kube-proxy ended on a node at each of {ATTEMPTS} attempts")

    def _proxies_stay(self) -> bool:
        """Whether every node has its kube-proxy: one that starts before the API server answers it may end."""
        listed = run(["kubectl", f"--kubeconfig={self._kubeconfig()}", "get", "nodes", "--output", "json"], 30, PATH)
        addresses = [node["status"]["addresses"][0]["address"] for node in json.loads(listed)["items"]]
        # its health's port is open before it may end, for some seconds
        time.sleep(PROXY_SECONDS)
        return all(listens(address, 10256) for address in addresses)

    def _kubeconfig(self) -> Path:
        return Path(re.findall(r"KUBECONFIG=(\S+)", self._run(10, "env"))[0])

    def load(self, archive: Path) -> None:
        self._run(LOAD_SECONDS, "load", str(archive))

    def down(self) -> None:
        self._run(DOWN_SECONDS, "down")
        for name, value in self._found.items():
            Path("/proc/sys", name).write_text(value)

    def recycle(self) -> None:
        kubectl = ["kubectl", f"--kubeconfig={self._kubeconfig()}"]
        for volume in json.loads(run([*kubectl, "get", "pv", "--output", "json"], 30, PATH))["items"]:
            if volume["status"]["phase"] == "Released":
                directory = Path(volume["spec"]["local"]["path"])
                for each in directory.iterdir():
                    shutil.rmtree(each)
                patch = ["--patch", '{"spec": {"claimRef": null}}']
                run([*kubectl, "patch", "pv", volume["metadata"]["name"], *patch], 30, PATH)

    def cut(self, node: str) -> None:
        """Take a node off the network."""
        run(["ip", "link", "set", f"kv{node.removeprefix('node')}", "down"], 10)

    def mend(self, node: str) -> None:
        """Put it back."""
        run(["ip", "link", "set", f"kv{node.removeprefix('node')}", "up"], 10)

    def _run(self, seconds: float, *words: str) -> str:
        HOME.mkdir(parents=True, exist_ok=True)
        return run([str(self._program), *words], seconds, {"KUBE_DIR": str(HOME), "KUBE_FAMILY": self._family})


class Kind:
    """kind: nodes are containers of this host's Docker."""

    NAME = "etcd-pd-test"

    def up(self, family: str) -> Path:
        HOME.mkdir(parents=True, exist_ok=True)
        config, kubeconfig = HOME / "kind.yaml", HOME / "kind.kubeconfig"
        workers = "".join("- role: worker\n" for _ in range(NODES))
        config.write_text(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"
            f"networking: {{ipFamily: {family}}}\nnodes:\n- role: control-plane\n{workers}"
        )
        self._run(UP_SECONDS, "create", "cluster", "--config", str(config), "--kubeconfig", str(kubeconfig))
        return kubeconfig

    def load(self, archive: Path) -> None:
        self._run(LOAD_SECONDS, "load", "image-archive", str(archive))

    def recycle(self) -> None:
        pass

    def down(self) -> None:
        self._run(120, "delete", "cluster")

    def _run(self, seconds: float, *words: str) -> None:
        run(["kind", *words, "--name", self.NAME], seconds)


def find() -> Provider:
    """The first of them that is to be had.

    Raises:
        NoCluster: none is.
    """
    if os.environ.get("ETCD_PD_TEST_CLUSTER") == "1" and os.environ.get("KUBECONFIG"):
        return Given()
    folder = os.environ.get("ETCD_PD_KUBERNETES", "")
    if folder and (Path(folder) / "cluster").exists():
        return Folder(Path(folder).resolve())
    if shutil.which("kind"):
        return Kind()
    raise NoCluster(
        "the chart was not tried on a cluster: set ETCD_PD_TEST_CLUSTER=1 with KUBECONFIG, or ETCD_PD_KUBERNETES, or "
        "install kind; ETCD_PD_NO_CLUSTER=1 goes without"
    )


def listens(address: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection((address, port), 5).close()
    except OSError:
        return False
    return True


def run(
    command: Sequence[str],
    seconds: float,
    environ: dict[str, str] | None = None,
    stdin: str = "",
    directory: Path | None = None,
) -> str:
    """What a command prints.

    Raises:
        AssertionError: it failed, or did not end in time, with what it said.
    """
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **(environ or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        end, said = f"{done.returncode}", [done.stdout, done.stderr]
    except subprocess.TimeoutExpired as exc:
        # bytes, whatever was asked for
        end, said = f"not after {seconds:.0f} s", [(each or b"").decode() for each in (exc.stdout, exc.stderr)]
    assert end == "0", f"{' '.join(command)}: {end}\n{said[0][-3000:]}{said[1][-3000:]}"
    return said[0]
