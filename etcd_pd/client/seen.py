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

    def note(self, cluster_id: int, revision: int) -> None:
        """An agent has come that far.

        Where it reads another etcd, nothing is noted before it says so: it must be asked, again if need be.
        """
        if self.cluster_id in (0, cluster_id):
            self.cluster_id, self.revision = cluster_id, max(self.revision, revision)

    def forget(self) -> None:
        """etcd has another history."""
        self.revision = self.cluster_id = 0
