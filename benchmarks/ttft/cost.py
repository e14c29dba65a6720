"""The cost model: two parameters, fitted once by :mod:`.fit` and written down in ``cost_model.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etcd_pd.reference.engine.lock_step import PassCost

from . import published

PATH = Path(__file__).with_name("cost_model.json")


@dataclass(frozen=True)
class CostModel:
    """What the emulated instance can do, in the terms of the pull request.

    Attributes:
        saturated_requests_per_second: prompts of 3500 tokens that the instance computes where every rank always has as
            many as a pass takes.
        unloaded_prefill_seconds: time of one such prompt in an idle instance.
    """

    saturated_requests_per_second: float
    unloaded_prefill_seconds: float

    def pass_cost(self) -> PassCost:
        """Seconds for each token of the longest rank, and for each token of all ranks.

        With DP attention and expert parallelism a rank computes attention for its own tokens, and the others wait for
        the longest one at the next collective; the experts are spread over the ranks, and take time for all tokens. One
        prompt alone costs ``longest + shared``, one on each of n ranks ``longest + n * shared``: two parameters, two
        unknowns.

        Raises:
            ValueError: no such pass has both parameters.
        """
        ranks, tokens = published.DP_SIZE, published.PROMPT_TOKENS
        one_each = ranks / self.saturated_requests_per_second
        shared = (one_each - self.unloaded_prefill_seconds) / (ranks - 1) / tokens
        longest = self.unloaded_prefill_seconds / tokens - shared
        if shared < 0 or longest < 0:
            raise ValueError(f"{self} would take negative time")
        return PassCost(longest, shared)


def load_cost_model(path: Path = PATH) -> CostModel:
    """What was fitted."""
    found: dict[str, Any] = json.loads(path.read_text())
    return CostModel(**found["parameters"])


def save_cost_model(model: CostModel, facts: dict[str, Any], path: Path = PATH) -> None:
    """Write it down, with how it was found."""
    path.write_text(json.dumps({"parameters": asdict(model), **facts}, indent=1) + "\n")
