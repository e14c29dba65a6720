"""One tiny model for all engine tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from etcd_pd.reference.engine import tiny
from etcd_pd.reference.engine.card import go_offline
from etcd_pd.reference.engine.model import Model
from etcd_pd.reference.engine.text import Tokenizer


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The default model's directory, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        go_offline()
        yield tiny.ensure()


@pytest.fixture(scope="session")
def model(model_path: str) -> Model:
    """The default model, loaded."""
    torch.set_num_threads(1)
    return Model(model_path)


@pytest.fixture(scope="session")
def tokenizer(model_path: str) -> Tokenizer:
    """Its tokenizer."""
    return Tokenizer(model_path)
