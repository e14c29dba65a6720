"""The reference model's own continuation of a text, computed in this process: what every stack must answer."""

from __future__ import annotations

from collections.abc import Sequence


def continue_texts(texts: Sequence[str], new_tokens: int) -> list[list[int]]:
    """Token ids that follow each text, sampled greedily."""
    from etcd_pd.reference.engine.card import go_offline

    go_offline()
    from etcd_pd.reference.engine import tiny
    from etcd_pd.reference.engine.card import read_card
    from etcd_pd.reference.engine.messages import Sampling
    from etcd_pd.reference.engine.model import Model
    from etcd_pd.reference.engine.reference import generate
    from etcd_pd.reference.engine.settings import PrefillSettings
    from etcd_pd.reference.engine.text import Tokenizer

    path = tiny.ensure()
    model, tokenizer, ends = Model(path), Tokenizer(path), read_card(path, PrefillSettings()).end_tokens
    sampling = Sampling(max_new_tokens=new_tokens)
    return [generate(model, tokenizer.encode(text), sampling, ends).token_ids for text in texts]
