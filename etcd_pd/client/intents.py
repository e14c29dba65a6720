"""What a rank said of its rooms: each thing has a number, and is said again to a new agent until it is answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ..wire import messages, to_agent


class Held(NamedTuple):
    """A room that etcd has."""

    token: int
    lease_id: int
    epoch: int


#: A release, or a failure where there is a reason, that etcd may not have yet: its number, the room, the reason, the
#: room as etcd had it (None where that is not known), and the number of its registration where that was not answered,
#: else 0. A plain tuple: there is one for every room.
Ending = tuple[int, int, str | None, Held | None, int]


def _packet(ending: Ending) -> bytes:
    sequence, room, reason, _, _ = ending
    if reason is None:
        return messages.encode_room(messages.RELEASE, room, sequence)
    return to_agent.Fail(room, reason, sequence).encode()


class Intents:
    """Registrations that were not answered, rooms that are held, releases and failures that are not durable.

    Args:
        send: sends or queues a packet; False where nothing was kept, because there is no agent or no place.

    Attributes:
        asked: number of its REGISTER, by room.
        held: what etcd has, by room.
        endings: not durable yet, in order.
        unsaid: those of them for which there was no place.
        sequence: number of what was said last.
    """

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        self._send = send
        self.asked: dict[int, int] = {}
        self.held: dict[int, Held] = {}
        self._lots: dict[int, tuple[int, ...]] = {}  # the lot that a room was asked for with
        self.endings: deque[Ending] = deque()
        self.unsaid: deque[Ending] = deque()  # those of them for which the queue had no place
        self.sequence = 0

    def __len__(self) -> int:
        """How much is not answered."""
        return len(self.asked) + len(self.endings)

    def number(self) -> int:
        """The number of what is said next."""
        self.sequence += 1
        return self.sequence

    def ask_lot(self, lot: dict[int, int]) -> None:
        """Rooms, with their numbers, were asked for together."""
        self.asked |= lot
        self._lots |= dict.fromkeys(lot, tuple(lot))

    def end(self, room: int, reason: str | None, *, connected: bool) -> None:
        """Release a room, or fail it; kept until it is durable. Nobody waits for its registration any more."""
        asked = self.asked.pop(room, 0)
        if self._lots:
            self._lots.pop(room, None)
        self.sequence += 1
        ending = (self.sequence, room, reason, self.held.pop(room, None), asked)
        self.endings.append(ending)
        if connected and (self.unsaid or not self._send(_packet(ending))):
            self.unsaid.append(ending)

    def say_unsaid(self) -> bool:
        """Say what found no place; True where nothing is left to say."""
        while self.unsaid:
            if not self._send(_packet(self.unsaid[0])):
                return False
            if self.unsaid:  # else a new connection was made meanwhile, and said everything
                self.unsaid.popleft()
        return True

    def say_again(self, *, to_another: bool) -> Iterator[bytes]:
        """Everything, in its order: the same agent folds what it knows, another one knows nothing.

        Args:
            to_another: also what must come before an ending so that an agent that does not know its room does it.
        """
        self.unsaid.clear()
        if to_another:
            self._forget_done()
            rooms: Iterable[tuple[int, Held | None]] = [
                *self.held.items(),
                *((room, held) for _, room, _, held, _ in self.endings),
            ]
            yield from messages.encode_adopted(
                messages.AdoptedRoom(room, held.epoch, held.token, held.lease_id) for room, held in rooms if held
            )
        said = [(ending[0], _packet(ending)) for ending in self.endings]
        for lot in dict.fromkeys(self._lots.values()):
            left = [(room, self.asked[room]) for room in lot if self._lots.get(room) == lot]
            said.append((left[0][1], messages.encode_lot(left)))
        alone = [(number, room) for room, number in self.asked.items() if room not in self._lots]
        if to_another:
            alone += [(asked, room) for _, room, _, _, asked in self.endings if asked]
        said += [(number, messages.encode_room(messages.REGISTER, room, number)) for number, room in alone]
        yield from [packet for _, packet in sorted(said)]

    def _forget_done(self) -> None:
        """etcd has all that ended a room of which it has a later life, also where it is not known to be durable."""
        later = set(self.held)
        left: deque[Ending] = deque()
        for ending in reversed(self.endings):
            _, room, _, held, _ = ending
            if room not in later:
                left.appendleft(ending)
            if held:
                later.add(room)
        self.endings = left

    def answer(self, room: int, sequence: int) -> bool:
        """The registration of this number was answered; False where nobody waits for that any more."""
        if self.asked.get(room) != sequence:
            return False
        del self.asked[room]
        if self._lots:
            self._lots.pop(room, None)
        return True

    def settle(self, sequence: int) -> None:
        """All endings up to this number are durable."""
        endings = self.endings
        while endings and endings[0][0] <= sequence:
            endings.popleft()

    def end_epoch(self) -> None:
        """All rooms in etcd are dead, and go with their leases; what was never registered may still have to fail."""
        self.held.clear()
        self.endings = deque(ending for ending in self.endings if not ending[3])
        self.unsaid = deque(ending for ending in self.unsaid if not ending[3])
