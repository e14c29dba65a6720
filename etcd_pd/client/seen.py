"""How far this process has seen etcd, so that a new agent can say whether it still is that etcd."""

from __future__ import annotations


class Seen:
    """The highest revision seen, and of which cluster; zeros before anything was.

    Attributes:
        revision: etcd's, of anything that an agent said.
        cluster_id: etcd's.
    """

    __slots__ = ("cluster_id", "revision")

    def __init__(self) -> None:
        self.revision = self.cluster_id = 0

    def forget(self) -> None:
        """etcd has another history."""
        self.revision = self.cluster_id = 0
