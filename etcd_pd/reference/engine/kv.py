"""The KV cache of one request: tensors here, safetensors bytes on the wire (no pickle, nothing is executed)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from etcd_pd.errors import EtcdPDError


class KVFormatError(EtcdPDError):
    """Bytes are no KV cache, or not one of this model."""


@dataclass(frozen=True)
class KVLayout:
    """What every KV cache of one model has in common.

    Attributes:
        dtype: number format.
        layers: heads, key width and value width of each layer.
    """

    dtype: torch.dtype
    layers: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one request, a pair of tensors ``[heads, tokens, width]`` for each layer."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def tokens(self) -> int:
        """How many tokens it covers."""
        return self.layers[0][0].shape[1]

    @property
    def layout(self) -> KVLayout:
        """The layout that it has."""
        return KVLayout(
            self.layers[0][0].dtype,
            tuple((keys.shape[0], keys.shape[2], values.shape[2]) for keys, values in self.layers),
        )

    def to_bytes(self) -> bytes:
        """The cache as a safetensors file: tensors ``k.0``, ``v.0``, ``k.1``, ..."""
        named = {}
        for index, (keys, values) in enumerate(self.layers):
            named[f"k.{index}"], named[f"v.{index}"] = keys.cpu().contiguous(), values.cpu().contiguous()
        return save(named)

    @classmethod
    def from_bytes(cls, data: bytes, layout: KVLayout, tokens: int) -> KVCache:
        """Read a cache of ``tokens`` tokens.

        Raises:
            KVFormatError: the bytes are garbage, or a cache of another model or length.
        """
        try:
            named = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise KVFormatError(f"not a safetensors file: {error}") from None
        layers = []
        for index, (heads, key_width, value_width) in enumerate(layout.layers):
            keys = _take(named, f"k.{index}", (heads, tokens, key_width), layout.dtype)
            values = _take(named, f"v.{index}", (heads, tokens, value_width), layout.dtype)
            layers.append((keys, values))
        if named:
            raise KVFormatError(f"unexpected tensors: {', '.join(sorted(named))[:200]}")
        return cls(tuple(layers))


def _take(named: dict[str, torch.Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    tensor = named.pop(name, None)
    if tensor is None:
        raise KVFormatError(f"tensor {name} is missing")
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise KVFormatError(f"tensor {name} is {tensor.dtype}{list(tensor.shape)}, not {dtype}{list(shape)}")
    return tensor
