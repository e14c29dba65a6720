"""The same model without disaggregation and without batching: what an engine's output is compared with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from .messages import Sampling
from .model import Model
from .sampling import choose, margin


@dataclass(frozen=True)
class Reference:
    """What the model says.

    Attributes:
        token_ids: generated tokens, with the one that ended the text.
        smallest_margin: smallest distance between the two largest logits met. Batching changes the last bits of the
            logits, so a greedy choice may differ where this is of the order of rounding errors.
    """

    token_ids: list[int] = field(default_factory=list)
    smallest_margin: float = float("inf")


@torch.inference_mode()
def generate(model: Model, token_ids: Sequence[int], sampling: Sampling, end_tokens: Collection[int] = ()) -> Reference:
    """Continue a prompt: the whole of it in one pass, then one token at a time. Stop texts are not looked at.

    Args:
        model: the model.
        token_ids: the prompt.
        sampling: needs a seed where the temperature is above 0.
        end_tokens: the model's own end tokens.
    """
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(end_tokens))
    cache = DynamicCache()
    found: list[int] = []
    pending, smallest = list(token_ids), float("inf")
    while len(found) < sampling.max_new_tokens and not (found and found[-1] in stops):
        ids = torch.tensor([pending], device=model.device)
        logits = model.network(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1]
        smallest = min(smallest, margin(logits))
        pending = [choose(logits, sampling, sampling.seed or 0, len(found))]
        found += pending
    return Reference(found, smallest)
