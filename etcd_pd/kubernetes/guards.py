"""What forbids a member of etcd to start, because it would do harm quietly, or end with words that help nobody.

An older generation than the latest on its volume, an older etcd than the cluster's, another cluster than was formed, or
a log that the etcd cannot read.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from ..config import EtcdSettings
from ..errors import EtcdPDError
from ..store.cluster_version import ask_version
from ..store.etcdrpc.wal import reads_v2_requests

#: The directory of a generation, as the chart calls it.
_GENERATION = re.compile(r"(.+-)([0-9]+)")
#: The first minor version that panics at a request of the v2 API, and the last that reads it.
_WITHOUT_V2, _LAST_WITH_V2 = (3, 7), (3, 6)
#: After how many entries a member takes a snapshot that has such a log still: its own default is 10,000.
SNAPSHOT_COUNT = 100


class OlderGeneration(EtcdPDError):
    """The volume holds a later generation: this one's data, if there is any, is what was given up then."""


class OlderEtcd(EtcdPDError):
    """The cluster is of a later minor version than the etcd that would start, which cannot read its data."""


class AnotherCluster(EtcdPDError):
    """The members that answer are not those of the cluster that was formed: somebody else is behind their names."""


class UnreadableLog(EtcdPDError):
    """The member would read requests of etcd 3.5 again as it starts, at which etcd 3.7 panics."""


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


def check_log(version: str, wal: Path) -> bool:
    """Look for what etcd 3.7 cannot read; whether the member must take a snapshot soon, so that it need not be read.

    Raises:
        UnreadableLog: the etcd that is to start cannot read it.
        OSError: nor can we.
    """
    if _minor(version) < _LAST_WITH_V2 or not reads_v2_requests(wal):
        return False
    if _minor(version) >= _WITHOUT_V2:
        raise UnreadableLog(
            f"this member's log holds requests of etcd 3.5, at which etcd {version} panics: set etcd.image.tag back to "
            f"3.6, where each member takes a snapshot as it starts, or once {SNAPSHOT_COUNT} entries were written in "
            "all, and then forward again"
        )
    return _minor(version) == _LAST_WITH_V2


def _minor(version: str) -> tuple[int, ...]:
    """(3, 6) of ``3.6.16``; nothing of nothing."""
    return tuple(int(part) for part in version.split(".")[:2] if part)
