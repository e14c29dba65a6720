"""The default model: a tiny Llama with random weights and a tokenizer trained on the text in ``data/corpus.txt``.

It is made at first use into the user's cache directory as an ordinary model directory, so everything that reads it
takes the same way as for any other model. The same recipe gives the same model: same seed, same text.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

#: Changed whenever the recipe below changes.
_RECIPE = "1"
_BUILDING = ".tiny-llama-"
_SEED = 20
_VOCABULARY = 1024
_CONTEXT = 32768
_END = "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def ensure() -> str:
    """Return the directory of the default model, and make it where it is missing. Safe in several processes at once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etcd-pd"
    directory = cache / f"tiny-llama-{_key()}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "tiny-llama.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():
                # whoever was killed while making it left its work behind
                for leftover in cache.glob(f"{_BUILDING}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                _make(directory)
    return str(directory)


def _key() -> str:
    versions = [f"{name} {version(name)}" for name in ("tokenizers", "torch", "transformers")]
    return hashlib.sha256("\n".join([_RECIPE, _corpus(), *versions]).encode()).hexdigest()[:12]


def _corpus() -> str:
    return files("etcd_pd.reference.engine").joinpath("data/corpus.txt").read_text("utf-8")


def _make(directory: Path) -> None:
    building = Path(tempfile.mkdtemp(dir=directory.parent, prefix=_BUILDING))
    try:
        _make_tokenizer(building)
        _make_weights(building)
        building.chmod(0o755)
        building.rename(directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _make_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # whole bytes are tokens too, so any text survives
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END, *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus().splitlines(keepends=True), trainer)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END, extra_special_tokens=list(_ROLES)
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    wrapped.save_pretrained(directory)


def _make_weights(directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        # about 1/sqrt(hidden_size): every layer then changes what it is given, so a wrong KV cache gives wrong tokens
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        LlamaForCausalLM(config).save_pretrained(directory)
