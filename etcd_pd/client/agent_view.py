"""How far the agent's view of etcd is, as this process may rely on it: what the agent says, and its silence."""

from __future__ import annotations

import itertools

from ..wire import messages
from .seen import Seen


class AgentView:
    """Filled from VIEW packets.

    Attributes:
        state: ``synced``, ``stale`` or ``closed``.
        cluster_id: of the etcd that the agent reads, 0 before it has.
        floor: revision of the agent's last list.
        silent_at: until when the agent must have said something, monotonic seconds.
    """

    __slots__ = (
        *("_answered_round", "_answered_want", "_last_want", "_revision", "_round", "_rounds", "_seen"),
        *("cluster_id", "floor", "silent_at", "state"),
    )

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.state = "stale"
        self.silent_at = 0.0
        self._revision = self.floor = self.cluster_id = 0
        self._last_want = self._answered_want = 0  # numbers of wants: said to this agent, and looked at by it
        self._rounds = itertools.count(1)
        self._round = self._answered_round = 0  # in which all was asked again (0: in none), and which was answered

    @property
    def revision(self) -> int:
        """Up to which everything that concerns this process has arrived; 0 while that is not known."""
        if self._round and self._answered_round != self._round:
            return 0
        return self._revision if self._answered_want >= self._last_want else 0

    def read(self, packet: bytes) -> None:
        """The agent says how far it is, in a VIEW or RESOLVED packet."""
        at = messages.decode_view(packet)
        self._revision, view, self._answered_want, self.floor, self._answered_round, self.cluster_id = at
        self.state = messages.VIEWS[view]
        if self.cluster_id:
            self._seen.note(self.cluster_id, self._revision)

    def is_of_another(self, cluster_id: int) -> bool:
        """Whether something is not of the etcd that this process says it has seen."""
        return bool(cluster_id and self._seen.cluster_id) and cluster_id != self._seen.cluster_id

    def lose(self) -> None:
        """There is no agent."""
        self.state, self._revision = "stale", 0

    def note_sign(self, now: float) -> None:
        """The agent has said anything at all."""
        self.silent_at = now + messages.SILENCE_SECONDS

    def note_silence(self) -> None:
        """It is past ``silent_at``: an agent that says nothing at all is stopped, and its view may be old."""
        if self.state == "synced":
            self.state = "stale"

    # --- what this process asks

    def ask(self, want: int) -> None:
        """A wait of this number is said to the agent: its answers count once it has looked at that."""
        self._last_want = want

    def forget_round(self) -> None:
        """Everything is asked again."""
        self._revision = self._last_want = self._answered_want = self._round = 0

    def open_round(self) -> bytes:
        """The PING whose answer says that all was looked at: of what came before, answers may be missing."""
        self._round = next(self._rounds)
        return messages.encode_ping(self._round)
