"""Which rank has which prompt: chooses ranks, accounts for their loads, and passes on what they say."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable

from etcd_pd.reference.balance import Load, NoServingRank, Request, create

from .errors import ABORTED, RequestFailed
from .messages import Update
from .metrics import Served
from .requests import PREFILL, Item


class Replies:
    """What ranks answer to the prompts of one request."""

    def __init__(self) -> None:
        self._updates: asyncio.Queue[tuple[int, Update | RequestFailed]] = asyncio.Queue()

    def put(self, index: int, update: Update | RequestFailed) -> None:
        """Something happened to the prompt at ``index``."""
        self._updates.put_nowait((index, update))

    async def next(self) -> tuple[int, Update]:
        """The next update and the place of its prompt.

        Raises:
            RequestFailed: a prompt ended without a result.
        """
        index, update = await self._updates.get()
        if isinstance(update, RequestFailed):
            raise update
        return index, update


class _Ticket:
    def __init__(self, index: int, room: int, tokens: int, replies: Replies) -> None:
        self.index = index
        self.room = room
        self.tokens = tokens
        self.replies = replies
        self.waits_since: float | None = time.perf_counter()  # until its first token is here
        self.begun = False


class Dispatcher:
    """The ranks of an instance as its policy sees them.

    Args:
        role: ``prefill`` or ``decode``.
        policy: name of the dispatch policy.
        dp_size: how many ranks there are.

    Attributes:
        served: what is counted of the prompts.
    """

    def __init__(self, role: str, policy: str, dp_size: int) -> None:
        self._role = role
        self._policy = create(policy)
        self._tickets: list[dict[int, _Ticket]] = [{} for _ in range(dp_size)]
        self._serving = [False] * dp_size
        self._ids = itertools.count(1)
        self._sequence = 0
        self.served = Served()

    @property
    def loads(self) -> list[Load]:
        """Each rank's load."""
        return [
            Load(
                len(tickets),
                sum(ticket.tokens for ticket in tickets.values()),
                serving,
                sum(ticket.tokens for ticket in tickets.values() if not ticket.begun),
            )
            for tickets, serving in zip(self._tickets, self._serving, strict=True)
        ]

    @property
    def idle(self) -> bool:
        """Whether no prompt is in flight."""
        return not any(self._tickets)

    def serve(self, dp_rank: int, serving: bool = True) -> None:
        """The rank takes prompts from now on, or no more."""
        self._serving[dp_rank] = serving

    def find_waiting(self, room: int) -> tuple[int, int] | None:
        """The rank and the id of a room's prompt that has no token yet; None where there is none."""
        for dp_rank, tickets in enumerate(self._tickets):
            for id, ticket in tickets.items():
                if ticket.room == room and ticket.waits_since is not None:
                    return dp_rank, id
        return None

    def take(self, item: Item, index: int, replies: Replies) -> tuple[int, int]:
        """Choose a rank for a prompt; returns it and the id by which the rank is to speak of the prompt.

        Raises:
            RequestFailed: no rank can take it.
        """
        # decode's only rank takes requests that name a rank of the prefill instance
        named = item.routed_dp_rank if self._role == PREFILL or len(self._tickets) > 1 else None
        request = Request(item.room, len(item.input_ids), self._sequence, named)
        try:
            dp_rank = self._policy.choose(request, self.loads)
        except NoServingRank as error:
            raise RequestFailed(503, "NoServingRank", str(error), room=item.room) from None
        self._sequence += named is None
        id = next(self._ids)
        self._tickets[dp_rank][id] = _Ticket(index, item.room, len(item.input_ids), replies)
        return dp_rank, id

    def begin(self, dp_rank: int, id: int) -> None:
        """A rank computes a prompt, or holds its KV cache: it waits no longer."""
        ticket = self._tickets[dp_rank].get(id)
        if ticket is not None:
            ticket.begun = True

    def update(self, dp_rank: int, update: Update) -> None:
        """A rank has said something about a prompt."""
        ticket = self._tickets[dp_rank].get(update.id)
        if ticket is None:
            return
        ticket.begun = True
        ticket.tokens += len(update.token_ids)
        first_of = ticket.waits_since if update.token_ids else None
        self.served.update(dp_rank, update, first_of)
        if first_of is not None:
            ticket.waits_since = None
        ticket.replies.put(ticket.index, update)
        if update.finish_reason is not None:
            del self._tickets[dp_rank][update.id]

    def fail(self, dp_rank: int, ids: Iterable[int], error: RequestFailed) -> None:
        """Prompts have ended without a result."""
        for id in ids:
            ticket = self._tickets[dp_rank].pop(id, None)
            if ticket is not None:
                self.served.end(dp_rank, error.type)
                ticket.replies.put(ticket.index, error)

    def lose(self, dp_rank: int, error: RequestFailed) -> None:
        """The rank is gone, and all that it had with it."""
        self._serving[dp_rank] = False
        self.fail(dp_rank, list(self._tickets[dp_rank]), error)

    def give_up(self, dp_rank: int, id: int) -> bool:
        """Nobody waits for a prompt any more; True where its rank must be told."""
        if self._tickets[dp_rank].pop(id, None) is None:
            return False
        self.served.end(dp_rank, ABORTED)
        return True
