"""The default model is the same everywhere, and any local model directory of the right kind takes its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from etcd_pd import ConfigError
from etcd_pd.reference.engine import tiny
from etcd_pd.reference.engine.card import model_modules, read_card
from etcd_pd.reference.engine.kv import KVCache
from etcd_pd.reference.engine.messages import Sampling
from etcd_pd.reference.engine.model import Model
from etcd_pd.reference.engine.reference import generate
from etcd_pd.reference.engine.settings import PrefillSettings

SMALL: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def save_qwen2(path: Path) -> None:
    torch.manual_seed(1)
    Qwen2ForCausalLM(Qwen2Config(**SMALL, eos_token_id=[5, 6])).save_pretrained(path)


def save_gpt2(path: Path) -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=1024, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(path)


def save_sliding(path: Path) -> None:
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=16)).save_pretrained(path)


def test_the_default_model_is_made_once_and_alike(model_path: str, tmp_path: Path, monkeypatch: Any) -> None:
    assert tiny.ensure() == model_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = Path(tiny.ensure())
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == Path(model_path, name).read_bytes()
    assert [path.name for path in again.parent.iterdir() if path.name.startswith(".")] == []


def test_what_the_card_says(model_path: str) -> None:
    card = read_card(model_path, PrefillSettings())
    assert (card.vocabulary, card.context, card.end_tokens) == (1024, 32768, frozenset([0]))
    assert card.model_type == "llama"
    assert card.name == Path(model_path).name
    named = read_card(model_path, PrefillSettings(served_model_name="mine", dtype="bfloat16"))
    assert named.name == "mine"
    assert named.fingerprint != card.fingerprint
    assert "transformers.models.llama.modeling_llama" in model_modules(model_path)


def test_other_weights_have_another_fingerprint(model_path: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_path, copy)
    same = read_card(str(copy), PrefillSettings()).fingerprint
    assert same == read_card(model_path, PrefillSettings()).fingerprint
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[20_000] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert read_card(str(copy), PrefillSettings()).fingerprint != same


def test_weights_have_another_fingerprint_when_they_begin_alike(model_path: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_path, copy)
    found = set()
    for layer in (b"a", b"b"):
        with (copy / "large.safetensors").open("wb") as weights:
            weights.truncate(48 << 20)  # a hole: nothing is written
            weights.seek(30 << 20)
            weights.write(layer * (9 << 20))
        found.add(read_card(str(copy), PrefillSettings()).fingerprint)
    assert len(found) == 2


@pytest.mark.parametrize("save", [save_qwen2, save_gpt2])
def test_other_kinds_of_models_run_batched_as_they_run_alone(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path)
    model = Model(str(tmp_path))
    prompts = [list(range(first, first + length)) for first, length in ((10, 30), (200, 3), (700, 70))]
    batch, tokens = model.batch(), []
    for ids in prompts:
        prompt = model.start()
        model.extend(prompt, ids[: len(ids) // 2]) if len(ids) > 3 else None
        logits = model.extend(prompt, ids[prompt.tokens :])
        cache = model.export(prompt)
        batch.join(KVCache.from_bytes(cache.to_bytes(), model.layout, len(ids)))
        tokens.append([int(logits.argmax())])
    for _ in range(11):
        for row, token in enumerate(batch.step([row[-1] for row in tokens]).argmax(-1).tolist()):
            tokens[row].append(token)
    for ids, found in zip(prompts, tokens, strict=True):
        expected = generate(model, ids, Sampling(max_new_tokens=12))
        assert expected.smallest_margin > 1e-5
        assert found == expected.token_ids


def test_all_end_tokens_count(tmp_path: Path) -> None:
    save_qwen2(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert read_card(str(tmp_path), PrefillSettings()).end_tokens == {5, 6, 7}


def test_layers_that_forget_are_refused(tmp_path: Path) -> None:
    save_sliding(tmp_path)
    with pytest.raises(ConfigError, match="full attention") as caught:
        Model(str(tmp_path))
    assert caught.value.field == "model_path"


def test_pickled_weights_are_not_loaded(model_path: str, tmp_path: Path) -> None:
    shutil.copy(Path(model_path, "config.json"), tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="model_path"):
        Model(str(tmp_path))


@pytest.mark.parametrize("config", ["", "{", '{"model_type": "no-such"}', '{"model_type": "llama", "vocab_size": "x"}'])
def test_a_broken_config_is_a_config_error(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="model_path"):
        read_card(str(tmp_path), PrefillSettings())


def test_a_device_that_is_not_there(model_path: str) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda"):
            Model(model_path, device="cuda")
