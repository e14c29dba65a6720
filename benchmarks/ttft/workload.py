"""What SGLang's load generator sends for a seed, and the rooms that the router draws."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from . import published


@dataclass(frozen=True)
class Workload:
    """Requests in the order of their arrival.

    Attributes:
        arrivals: seconds since the first.
        lengths: prompt tokens.
        rooms: bootstrap rooms.
    """

    arrivals: tuple[float, ...]
    lengths: tuple[int, ...]
    rooms: tuple[int, ...]


def make_workload(
    seed: int, rate: float, range_ratio: float = 1.0, rooms_seed: int | None = None, count: int = published.PROMPTS
) -> Workload:
    """The requests of ``bench_serving --seed SEED --request-rate RATE --random-range-ratio RATIO``.

    The draws are those of the generator, in its order: prompt lengths, output lengths, then one interval a request. It
    asks numpy's global generator, so the same seed gives the same arrivals here and there.

    Args:
        seed: of arrivals and lengths.
        rate: requests per second, ``math.inf`` for all at once.
        range_ratio: lengths are uniform between this share of the longest and the longest.
        rooms_seed: of the rooms, which the router draws; None: ``seed``.
        count: number of requests.
    """
    draw = np.random.RandomState(seed)
    lengths = _lengths(draw, published.PROMPT_TOKENS, range_ratio, count)
    _lengths(draw, published.OUTPUT_TOKENS, range_ratio, count)
    gaps = [0.0 if math.isinf(rate) else draw.exponential(1 / rate) for _ in range(count)]
    rooms = random.Random(f"rooms {seed if rooms_seed is None else rooms_seed}")
    return Workload(
        arrivals=tuple(float(at) for at in np.cumsum([0.0, *gaps[:-1]])),
        lengths=tuple(lengths),
        rooms=tuple(rooms.getrandbits(63) for _ in range(count)),
    )


def _lengths(draw: np.random.RandomState, longest: int, range_ratio: float, count: int) -> list[int]:
    found: list[int] = draw.randint(max(int(longest * range_ratio), 1), longest + 1, size=count).tolist()
    return found
