"""From logits to a token. Greedy by default; sampled tokens depend on the seed and the position alone."""

from __future__ import annotations

import random

import torch

from .messages import Sampling


def draw_seed() -> int:
    """A seed for a request that names none."""
    return random.SystemRandom().getrandbits(63)


def choose(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> int:
    """Return the next token.

    Args:
        logits: one row, ``[vocabulary]``.
        sampling: the request's parameters.
        seed: of the whole request.
        position: how many tokens were generated before. The draw is a function of seed and position, so neither the
            batch nor the process in which a token is generated changes it.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    cumulative = ordered.cumsum(-1)
    kept = int((cumulative - ordered < sampling.top_p).sum())
    if sampling.top_k > 0:
        kept = min(kept, sampling.top_k)
    kept = max(kept, 1)
    point = random.Random(f"{seed}:{position}").random() * float(cumulative[kept - 1])
    index = int(torch.searchsorted(cumulative[:kept], point, right=True))
    return int(tokens[min(index, kept - 1)])


def logprob(logits: torch.Tensor, token: int) -> float:
    """Natural logarithm of the probability that the model gives ``token``, before temperature and top-p."""
    return float(torch.log_softmax(logits.float(), dim=-1)[token])


def margin(logits: torch.Tensor) -> float:
    """Distance between the two largest logits: how far a greedy choice is from a tie."""
    best = logits.float().topk(2).values
    return float(best[0] - best[1])
