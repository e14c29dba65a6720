"""The policies, each a few lines: SGLang's four, and one of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from etcd_pd import ConfigError, EtcdPDError


class NoServingRank(EtcdPDError):
    """No rank may take the request: every candidate has died or is draining. Another instance may take it.

    Attributes:
        dp_rank: the only rank that could have taken it, None where any could.
    """

    def __init__(self, dp_rank: int | None = None) -> None:
        super().__init__("no dp_rank is serving" if dp_rank is None else f"dp_rank {dp_rank} is not serving")
        self.dp_rank = dp_rank


@dataclass(frozen=True)
class Load:
    """What one rank has on its hands.

    Attributes:
        requests: requests that it runs or that wait for it.
        tokens: tokens of those requests, prompts and what was generated so far.
        serving: False where the rank has died or is draining.
        waiting_tokens: those of ``tokens`` whose computation has not begun.
    """

    requests: int = 0
    tokens: int = 0
    serving: bool = True
    waiting_tokens: int = 0


@dataclass(frozen=True)
class Request:
    """What a policy may know of a request.

    Attributes:
        room: its bootstrap room.
        tokens: length of its prompt.
        sequence: how many requests the dispatcher has handed to its policy before this one.
        routed_dp_rank: the rank that the request names, or None.
    """

    room: int
    tokens: int = 0
    sequence: int = 0
    routed_dp_rank: int | None = None


@dataclass(frozen=True)
class Policy:
    """A named rule for requests that name no rank of their own."""

    name: str
    rule: Callable[[Request, Sequence[Load], Sequence[int]], int]

    def choose(self, request: Request, loads: Sequence[Load]) -> int:
        """Return the ``dp_rank`` that shall take ``request``; ``loads[dp_rank]`` is that rank's load.

        Raises:
            ConfigError: the request names a rank that the instance does not have.
            NoServingRank: the rank that it names, or that its room determines, is not serving, or none is.
        """
        named = request.routed_dp_rank
        if named is not None and not 0 <= named < len(loads):
            raise ConfigError("routed_dp_rank", f"must be in 0..{len(loads) - 1}, not {named}")
        serving = [dp_rank for dp_rank, load in enumerate(loads) if load.serving]
        if not serving:
            raise NoServingRank(named)
        chosen = self.rule(request, loads, serving) if named is None else named
        if chosen not in serving:
            raise NoServingRank(chosen)
        return chosen


def _follow_bootstrap_room(request: Request, loads: Sequence[Load], serving: Sequence[int]) -> int:
    # Decode computes the same rank from the room, so a dead rank's rooms must not move to another one.
    return request.room % len(loads)


def _round_robin(request: Request, loads: Sequence[Load], serving: Sequence[int]) -> int:
    return serving[request.sequence % len(serving)]


def _total_requests(request: Request, loads: Sequence[Load], serving: Sequence[int]) -> int:
    return min(serving, key=lambda dp_rank: loads[dp_rank].requests)


def _total_tokens(request: Request, loads: Sequence[Load], serving: Sequence[int]) -> int:
    return min(serving, key=lambda dp_rank: (loads[dp_rank].tokens, loads[dp_rank].requests))


def _shortest_wait(request: Request, loads: Sequence[Load], serving: Sequence[int]) -> int:
    # With DP attention a forward pass ends on all ranks at once, so what a rank computes already delays a request no
    # more than it would on another rank: what differs is the queue before it. Of equal queues, the idler rank's.
    def key(dp_rank: int) -> tuple[int, int, int]:
        load = loads[dp_rank]
        return load.waiting_tokens, load.tokens, load.requests

    return min(serving, key=key)


#: The known policies by name.
POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("follow_bootstrap_room", _follow_bootstrap_room),
            Policy("round_robin", _round_robin),
            Policy("total_requests", _total_requests),
            Policy("total_tokens", _total_tokens),
            Policy("shortest_wait", _shortest_wait),
        )
    }
)


def create(name: str) -> Policy:
    """Return the policy called ``name``.

    Raises:
        ConfigError: there is no such policy; its rule names the known ones.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigError("policy", f"must be one of {', '.join(POLICIES)}, not {name!r:.80}") from None
