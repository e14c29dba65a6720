"""A KV cache survives its journey bit by bit, and nothing else passes for one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save

from etcd_pd.reference.engine.kv import KVCache, KVFormatError, KVLayout


def make_cache(layers: int = 2, heads: int = 2, tokens: int = 5, width: int = 4, seed: int = 0) -> KVCache:
    generator = torch.Generator().manual_seed(seed)
    return KVCache(
        tuple(
            (
                torch.randn(heads, tokens, width, generator=generator),
                torch.randn(heads, tokens, width + 1, generator=generator),
            )
            for _ in range(layers)
        )
    )


@settings(max_examples=30, deadline=None)
@given(layers=st.integers(1, 4), heads=st.integers(1, 4), tokens=st.integers(1, 70), width=st.integers(1, 8))
def test_round_trip(layers: int, heads: int, tokens: int, width: int) -> None:
    cache = make_cache(layers, heads, tokens, width)
    back = KVCache.from_bytes(cache.to_bytes(), cache.layout, tokens)
    assert back.tokens == tokens
    for (keys, values), (keys_back, values_back) in zip(cache.layers, back.layers, strict=True):
        assert torch.equal(keys, keys_back)
        assert torch.equal(values, values_back)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_number_formats(dtype: torch.dtype) -> None:
    cache = KVCache(tuple((keys.to(dtype), values.to(dtype)) for keys, values in make_cache().layers))
    assert torch.equal(KVCache.from_bytes(cache.to_bytes(), cache.layout, 5).layers[1][1], cache.layers[1][1])


def test_what_is_cut_out_of_a_larger_tensor_travels_alone() -> None:
    keys = torch.arange(2 * 100 * 4, dtype=torch.float32).reshape(2, 100, 4)[:, 10:15]
    cache = KVCache(((keys, keys),))
    assert len(cache.to_bytes()) < 1000
    assert torch.equal(KVCache.from_bytes(cache.to_bytes(), cache.layout, 5).layers[0][0], keys)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(KVFormatError):
        KVCache.from_bytes(data, make_cache().layout, 5)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_header_never_raises_anything_else(position: int, byte: int) -> None:
    cache = make_cache()
    data = bytearray(cache.to_bytes())
    data[min(position, len(data) - 1)] = byte
    try:
        KVCache.from_bytes(bytes(data), cache.layout, 5)
    except KVFormatError:
        pass


def test_a_truncated_cache_is_refused() -> None:
    cache = make_cache()
    with pytest.raises(KVFormatError):
        KVCache.from_bytes(cache.to_bytes()[:-1], cache.layout, 5)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"k.0": torch.zeros(2, 5, 4)}, "v.0 is missing"),
        ({"k.0": torch.zeros(2, 6, 4), "v.0": torch.zeros(2, 5, 5)}, "k.0 is torch.float32"),
        ({"k.0": torch.zeros(2, 5, 4, dtype=torch.float64), "v.0": torch.zeros(2, 5, 5)}, "float64"),
        (
            {"k.0": torch.zeros(2, 5, 4), "v.0": torch.zeros(2, 5, 5), "k.1": torch.zeros(2, 5, 4)},
            "unexpected tensors: k.1",
        ),
    ],
)
def test_another_model_s_cache_is_refused(named: dict[str, torch.Tensor], message: str) -> None:
    layout = KVLayout(torch.float32, ((2, 4, 5),))
    with pytest.raises(KVFormatError, match=message):
        KVCache.from_bytes(save(named), layout, 5)
