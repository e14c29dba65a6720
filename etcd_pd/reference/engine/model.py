"""A Hugging Face causal language model from a local directory, with the few operations that an engine needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from etcd_pd import ConfigError

from .decode_batch import Batch, PaddedBatch
from .kv import KVCache, KVLayout


class Prompt:
    """A prompt whose KV cache is being computed, chunk by chunk."""

    def __init__(self) -> None:
        self.cache = DynamicCache()
        self.tokens = 0


class Model:
    """The model, ready to compute.

    Args:
        path: a directory that ``save_pretrained`` could have written, with safetensors weights.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: it cannot be loaded, or its layers keep something else than every token's keys and values.
    """

    emulated = False

    def __init__(self, path: str, device: str = "cpu", dtype: str = "float32") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device", "cuda was asked for and torch sees none")
        try:
            network: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
            )
        except Exception as error:  # transformers and its helpers raise whatever they like
            raise ConfigError("model_path", f"cannot load {path!r}: {error}") from error
        self.network: Any = network.requires_grad_(False).eval().to(device)
        self.device = torch.device(device)
        _check_attention(self.network.config)
        self.layout = self._measure_layout()

    def start(self) -> Prompt:
        """An empty prompt."""
        return Prompt()

    @torch.inference_mode()
    def extend(self, prompt: Prompt, token_ids: Sequence[int]) -> torch.Tensor:
        """Compute a further chunk of a prompt.

        Returns:
            the logits ``[vocabulary]`` after the chunk's last token.
        """
        ids = torch.tensor([list(token_ids)], device=self.device)
        output = self.network(input_ids=ids, past_key_values=prompt.cache, use_cache=True, logits_to_keep=1)
        prompt.tokens += len(token_ids)
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def export(self, prompt: Prompt) -> KVCache:
        """The prompt's KV cache as it travels."""
        layers: Any = prompt.cache.layers
        return KVCache(tuple((layer.keys[0], layer.values[0]) for layer in layers))

    def batch(self) -> Batch:
        """An empty running batch."""
        return PaddedBatch(self.network, self.layout, self.device)

    def _measure_layout(self) -> KVLayout:
        probe = self.start()
        self.extend(probe, [0])
        return self.export(probe).layout


def _check_attention(config: Any) -> None:
    plain = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = set(getattr(config, "layer_types", None) or [plain])
    if kinds != {"full_attention"}:
        raise ConfigError("model_path", f"needs layers of full attention, this model has {', '.join(sorted(kinds))}")
