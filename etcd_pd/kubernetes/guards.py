"""What forbids a member of etcd to start, because it would do harm quietly, or end with words that help nobody.

An older generation than the latest on its volume, an older etcd than the cluster's, or another cluster than was formed.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from ..config import EtcdSettings
from ..errors import EtcdPDError
from ..store.cluster_version import ask_version

#: The directory of a generation, as the chart calls it.
_GENERATION = re.compile(r"(.+-)([0-9]+)")


class OlderGeneration(EtcdPDError):
    """The volume holds a later generation: this one's data, if there is any, is what was given up then."""


class OlderEtcd(EtcdPDError):
    """The cluster is of a later minor version than the etcd that would start, which cannot read its data."""


class AnotherCluster(EtcdPDError):
    """The members that answer are not those of the cluster that was formed: somebody else is behind their names."""


def check_generation(data_dir: Path) -> None:
    """Compare with the directories of other generations on the same volume.

    Raises:
        OlderGeneration: there is a later one.
    """
    own = _GENERATION.fullmatch(data_dir.name)
    if not own or not data_dir.parent.is_dir():
        return
    found = [_GENERATION.fullmatch(entry.name) for entry in data_dir.parent.iterdir() if entry.is_dir()]
    latest = max((int(each[2]) for each in found if each and each[1] == own[1]), default=0)
    if latest > int(own[2]):
        raise OlderGeneration(
            f"the volume holds generation {latest} ({own[1]}{latest}), and this is generation {own[2]}, whose data was "
            f"given up: set etcd.generation={latest}, or {latest + 1} to begin with an empty etcd"
        )


async def check_version(version: str, etcd: EtcdSettings) -> None:
    """Compare the version of the etcd that is to start (X.Y.Z; empty: unknown) with the cluster's, if anybody tells it.

    Raises:
        OlderEtcd: the cluster's minor version is later.
    """
    if not version:
        return
    cluster = await asyncio.to_thread(ask_version, etcd)
    if _minor(cluster) > _minor(version):
        to = ".".join(map(str, _minor(version)))
        raise OlderEtcd(
            f"the cluster is at {'.'.join(map(str, _minor(cluster)))}, this image is {version}: go forward again (set "
            f"etcd.image.tag); to go back, a minor version at a time, first `etcdctl downgrade enable {to}` while all "
            "members run, and wait until the cluster is there"
        )


def check_cluster(formed_file: str, cluster_id: int) -> None:
    """Compare a cluster's id with that of the one that was formed, where one was.

    Raises:
        AnotherCluster: they differ.
    """
    path = Path(formed_file)
    if not formed_file or not path.exists():
        return
    formed = path.read_text().strip()
    if formed != f"{cluster_id:x}":
        raise AnotherCluster(
            f"cluster {formed} was formed, and the other members answer as {cluster_id:x}: this member joins no other; "
            "find out who answers behind their names"
        )


def _minor(version: str) -> tuple[int, ...]:
    """(3, 6) of ``3.6.16``; nothing of nothing."""
    return tuple(int(part) for part in version.split(".")[:2] if part)
