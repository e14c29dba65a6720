"""The reference model's own continuation of a text, computed in this process: what every stack must answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path


def continue_texts(texts: Sequence[str], new_tokens: int, path: str = "") -> list[list[int]]:
    """Token ids that follow each text, sampled greedily from the model in a directory; empty: the default model."""
    from etcd_pd.reference.engine.card import go_offline

    go_offline()
    from etcd_pd.reference.engine import tiny
    from etcd_pd.reference.engine.card import read_card
    from etcd_pd.reference.engine.messages import Sampling
    from etcd_pd.reference.engine.model import Model
    from etcd_pd.reference.engine.reference import generate
    from etcd_pd.reference.engine.settings import PrefillSettings
    from etcd_pd.reference.engine.text import Tokenizer

    path = path or tiny.ensure()
    model, tokenizer, ends = Model(path), Tokenizer(path), read_card(path, PrefillSettings()).end_tokens
    sampling = Sampling(max_new_tokens=new_tokens)
    return [generate(model, tokenizer.encode(text), sampling, ends).token_ids for text in texts]


def make_other_model(directory: Path) -> str:
    """A model whose KV caches have another layout: the default one without its last layer. Its path."""
    from etcd_pd.reference.engine import tiny

    shutil.copytree(tiny.ensure(), directory, dirs_exist_ok=True)
    config = directory / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "num_hidden_layers": said["num_hidden_layers"] - 1}))
    return str(directory)
