"""Real etcd in containers, to be killed, paused and partitioned.

`EtcdServer` is one member, `EtcdCluster` three. Both survive their own mistreatment: published ports are fixed, so an
endpoint stays true over a restart, and data lies in a volume, with fsync, so it does too, and over an upgrade. What a
killed test run left behind is removed by the next one.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, cast

# Read by testcontainers when it is imported. Its own cleaner is an image that not every machine can pull.
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
os.environ.setdefault("TC_POOLING_INTERVAL", "0.1")

import docker
import docker.errors
import psutil
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from tests.support.etcdctl import EtcdCtl, Status
from tests.support.ports import free_port
from tests.support.waiting import wait_until

_LABEL = "etcd-pd.tests.owner"
_CLIENT_PORT = "2379/tcp"


@cache
def image() -> str:
    """The etcd image's name; pulled or built where it is missing."""
    return _script("etcd-image").strip()


@cache
def versions() -> dict[str, str]:
    """The images of the etcds that people install today, by version, oldest first."""
    return dict(line.split(" ", 1) for line in _script("etcd-versions").splitlines())


def _script(name: str) -> str:
    script = Path(__file__).parents[2] / "scripts" / name
    done = subprocess.run([script], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"no etcd image ('make docker' makes one):\n{done.stderr}")
    return done.stdout


def remove_leftovers() -> None:
    """Removes containers and networks of test runs that are no more. Those of a run beside this one stay."""
    client = docker.from_env()
    try:
        for container in client.containers.list(all=True, filters={"label": _LABEL}, ignore_removed=True):
            if not _owner_lives(container.labels[_LABEL]):
                container.remove(force=True, v=True)
        for network in client.networks.list(filters={"label": _LABEL}):
            if not _owner_lives(network.attrs["Labels"][_LABEL]):
                network.remove()
        for volume in client.volumes.list(filters={"label": _LABEL}):
            if not _owner_lives(volume.attrs["Labels"][_LABEL]):
                volume.remove(force=True)
    finally:
        client.close()


def _owner() -> str:
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def _owner_lives(owner: str) -> bool:
    pid, _, born = owner.partition(":")
    try:
        return str(psutil.Process(int(pid)).create_time()) == born
    except (psutil.NoSuchProcess, ValueError):
        return False


class EtcdNode:
    """One etcd process in one container, of the image that the run has unless another is named."""

    def __init__(self, name: str, args: Sequence[str] = (), network: str | None = None, image_name: str = "") -> None:
        self.name = name
        self._args = tuple(args)
        self._image = image_name
        self._volume = f"etcd-pd-test-{uuid.uuid4().hex[:12]}"
        self._network = network
        self._run: DockerContainer | None = None
        self.endpoint = ""

    @property
    def ctl(self) -> EtcdCtl:
        """An independent client of this member."""
        return EtcdCtl(self.endpoint)

    def create(self) -> None:
        """Makes and starts the container; does not wait for etcd."""
        for attempt in range(5):
            try:
                return self._create(free_port())
            except docker.errors.APIError as refused:
                self.remove()
                if attempt == 4 or "port is already allocated" not in str(refused):
                    raise

    def _create(self, port: int) -> None:
        command = [
            "/usr/local/bin/etcd",
            f"--name={self.name}",
            "--data-dir=/data",
            "--listen-client-urls=http://0.0.0.0:2379",
            f"--advertise-client-urls=http://127.0.0.1:{port}",
            "--logger=zap",
            "--log-level=warn",
            *self._args,
        ]
        client = docker.from_env()
        client.volumes.create(self._volume, labels={_LABEL: _owner()})  # the same one, where it is there
        client.close()
        settings: dict[str, Any] = {"labels": {_LABEL: _owner()}}
        if self._network is not None:
            settings["network"] = self._network
        container = DockerContainer(self._image or image()).with_command(command).with_kwargs(**settings)
        self._run = container.with_volume_mapping(self._volume, "/data", "rw")
        # The wrapper's own way to publish knows no address, and these servers are for loopback alone.
        cast(dict[str, Any], self._run.ports)[_CLIENT_PORT] = ("127.0.0.1", port)
        self.endpoint = f"http://127.0.0.1:{port}"
        self._run.start()

    @property
    def container(self) -> Container:
        assert self._run is not None, "not created"
        container = self._run.get_wrapped_container()
        container.reload()
        return container

    @property
    def state(self) -> str:
        """Docker's word: running, paused, exited."""
        return str(self.container.status)

    @property
    def pid(self) -> int:
        """etcd's process id on this machine."""
        return int(self.container.attrs["State"]["Pid"])

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        container = self.container
        container.kill(signal="SIGKILL")
        container.wait(timeout=10)

    def stop(self) -> None:
        """SIGTERM, as in a rolling restart; returns when the process is gone."""
        self.container.stop(timeout=10)

    def start(self, wait: bool = True) -> None:
        """Starts it again after kill() or stop(), on the same port, with its data."""
        self.container.start()
        if wait:
            self.wait_healthy()

    def lose_everything(self) -> None:
        """An empty etcd in its place, on the same port and, for a single member, with the same cluster id."""
        self.remove()
        self._create(int(self.endpoint.rpartition(":")[2]))
        self.wait_healthy()

    def upgrade(self, image_name: str) -> None:
        """Stops it and starts another release on its data and its port; does not wait for etcd."""
        self.stop()
        self._remove_container()
        self._image = image_name
        self._create(int(self.endpoint.rpartition(":")[2]))

    def restart_with(self, *args: str, files: dict[str, bytes] | None = None) -> None:
        """Starts it again on its data and its port with other flags, and files beside its data in /data."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in (files or {}).items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        self.container.put_archive("/data", archive.getvalue())
        self._args = args
        self.upgrade(self._image)
        self.wait_healthy()

    def pause(self) -> None:
        """Freezes the process: sockets stay open, nobody answers."""
        self.container.pause()

    def unpause(self) -> None:
        self.container.unpause()

    def wait_healthy(self, timeout: float = 20.0) -> None:
        ctl = EtcdCtl(self.endpoint, timeout=1.0)
        try:
            wait_until(ctl.healthy, f"etcd {self.name} healthy at {self.endpoint}", timeout)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.logs()}") from None

    def restore(self) -> None:
        """Whatever a test did to it: running again."""
        if self.state == "paused":
            self.unpause()
        if self.state != "running":
            self.start(wait=False)

    def logs(self) -> str:
        return self.container.logs(tail=40).decode(errors="replace")

    def remove(self) -> None:
        """Ends it, with its data."""
        if self._run is None:
            return
        self._remove_container()
        client = docker.from_env()
        client.volumes.get(self._volume).remove(force=True)
        client.close()

    def _remove_container(self) -> None:
        if self._run is not None:
            self._run.stop()
            self._run = None


class EtcdServer(EtcdNode):
    """A single etcd. `endpoint` is its URL; `args` are more flags of etcd's."""

    def __init__(self, args: Sequence[str] = ()) -> None:
        super().__init__("single", args)

    @property
    def endpoints(self) -> list[str]:
        return [self.endpoint]

    def restore(self) -> None:
        super().restore()
        self.wait_healthy()

    def __enter__(self) -> EtcdServer:
        try:
            self.create()
            self.wait_healthy()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class EtcdCluster:
    """Three members.

    Clients and peers go over separate networks, so that clients still reach a member that its peers do not.
    """

    def __init__(self, size: int = 3, args: Sequence[str] = (), image_name: str = "") -> None:
        self._docker = docker.from_env()
        self._image = image_name
        self._size = size
        self._args = tuple(args)
        self._networks: list[Any] = []
        self.nodes: list[EtcdNode] = []

    @property
    def endpoints(self) -> list[str]:
        return [node.endpoint for node in self.nodes]

    def leader(self, among: Sequence[EtcdNode] | None = None, timeout: float = 15.0) -> EtcdNode:
        """The member that leads in the highest term that anybody `among` (default: all) reports; waits for one."""
        return wait_until(lambda: self._leader(among or self.nodes), "the cluster has a leader", timeout, every=0.05)

    def followers(self) -> list[EtcdNode]:
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]

    def others(self, node: EtcdNode) -> list[EtcdNode]:
        return [other for other in self.nodes if other is not node]

    def partition(self, node: EtcdNode) -> None:
        """Cuts `node` off from its peers; its clients still reach it."""
        self._peers.disconnect(node.container)

    def heal(self, node: EtcdNode) -> None:
        self._peers.connect(node.container, aliases=[node.name])

    def upgrade(self, node: EtcdNode, image_name: str) -> None:
        """Replaces one member by another release; returns when it is healthy."""
        node.upgrade(image_name)
        self._peers.connect(node.container, aliases=[node.name])
        node.wait_healthy()

    def wait_healthy(self, timeout: float = 30.0) -> None:
        for node in self.nodes:
            node.wait_healthy(timeout)

    def restore(self) -> None:
        """Whatever a test did to it: three healthy members."""
        for node in self.nodes:
            node.restore()
        connected = {container.id for container in self._reloaded_peers().containers}  # lists running ones alone
        for node in self.nodes:
            if node.container.id not in connected:
                self._peers.connect(node.container, aliases=[node.name])
        self.wait_healthy()

    def _reloaded_peers(self) -> Any:
        self._peers.reload()
        return self._peers

    @property
    def _peers(self) -> Any:
        return self._networks[1]

    def _leader(self, among: Sequence[EtcdNode]) -> EtcdNode | None:
        reports: list[tuple[EtcdNode, Status]] = []
        for node in among:
            try:
                reports.append((node, EtcdCtl(node.endpoint, timeout=0.5).status()))
            except OSError:
                continue
        led = [status for _, status in reports if status.leader]
        if not led:
            return None
        latest = max(led, key=lambda status: status.raft_term)
        return next((node for node, status in reports if status.member_id == latest.leader), None)

    def _create(self) -> None:
        run = uuid.uuid4().hex[:8]
        # Peers' network is internal: published ports then always belong to the other one.
        for purpose in ("clients", "peers"):
            self._networks.append(
                self._docker.networks.create(
                    f"etcd-pd-test-{run}-{purpose}",
                    driver="bridge",
                    internal=purpose == "peers",
                    labels={_LABEL: _owner()},
                )
            )
        names = [f"etcd{number}" for number in range(self._size)]
        shared = [
            "--listen-peer-urls=http://0.0.0.0:2380",
            "--initial-cluster=" + ",".join(f"{name}=http://{name}:2380" for name in names),
            f"--initial-cluster-token={run}",
            *self._args,
        ]
        for name in names:
            advertise = f"--initial-advertise-peer-urls=http://{name}:2380"
            node = EtcdNode(name, [*shared, advertise], self._networks[0].name, self._image)
            self.nodes.append(node)
            node.create()
            self._peers.connect(node.container, aliases=[name])
        self.wait_healthy()

    def __enter__(self) -> EtcdCluster:
        try:
            self._create()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        undo: list[Callable[[], None]] = [node.remove for node in self.nodes]
        undo += [network.remove for network in self._networks]
        undo.append(self._docker.close)
        for step in undo:
            try:
                step()
            except docker.errors.APIError as refused:
                print(f"cleaning up: {refused}")
