"""Which data-parallel rank of an instance takes a request.

A policy is a pure function of the request and of the ranks' loads: no state, no clock, no randomness, so the same
question has the same answer wherever it is asked. What changes between two requests (the load, how many requests came
before) is in its arguments. A rank that the request names wins over every policy, and only serving ranks are chosen.

    policy = create("total_tokens")
    dp_rank = policy.choose(Request(room=7, tokens=120), [Load(requests=3, tokens=900), Load(requests=1, tokens=40)])
"""

from .policies import POLICIES, Load, NoServingRank, Policy, Request, create

__all__ = ["POLICIES", "Load", "NoServingRank", "Policy", "Request", "create"]
