"""Which of etcd's members an agent talks to, so that the agents of a cell are spread evenly over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def place(agents: Iterable[bytes], members: Sequence[int]) -> dict[bytes, int]:
    """A member for each agent: the same for whoever asks, no member with more than the others but for the remainder.

    Rendezvous hashing with a bound, so that few agents move when one comes or goes.
    """
    names = sorted(agents)
    bound = -(-len(names) // len(members))
    load: Counter[int] = Counter()
    placed: dict[bytes, int] = {}
    for name in names:
        placed[name] = max((one for one in members if load[one] < bound), key=lambda one: _score(name, one))
        load[placed[name]] += 1
    return placed


def _score(agent: bytes, member: int) -> bytes:
    return blake2b(b"%s %x" % (agent, member), digest_size=8).digest()
