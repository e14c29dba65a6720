"""Both fleets go over to a model whose KV caches have another layout, under load."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.continuations import continue_texts, make_other_model
from tests.support.waiting import wait_until

from .conftest import MakeRelease
from .load import ENGINE_LOST, NEW_TOKENS, TEXTS
from .release import SMALL, STEP_SECONDS, Release

pytestmark = [pytest.mark.helm, pytest.mark.chaos, pytest.mark.timeout(1800)]

# as docs/operations.md says (Another model)
VALUES: dict[str, Any] = {"etcd": {"replicas": 1}, "router": {"args": ["--decode-policy=random"]}}
#: Where pods have the other model: in the volume of the engine's cache.
OTHER = "/cache/other"
ENVIRONMENT = {"HOME": "/cache", "XDG_CACHE_HOME": "/cache", "USER": "etcd-pd"}
MAKE = f"""
import json, shutil
from pathlib import Path
{inspect.getsource(make_other_model)}
make_other_model(Path("{OTHER}"))
"""


@pytest.fixture(scope="module")
def cell(make_release: MakeRelease) -> Iterator[Release]:
    """Two prefills and two decodes of the default model."""
    with make_release("models").installed(VALUES) as release:
        yield release


def other_model(image: str) -> dict[str, Any]:
    """Values of a fleet whose pods make the other model, and serve it."""
    making = {
        "name": "other-model",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", MAKE],
        "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
        "resources": SMALL,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {"extraInitContainers": [making], "env": [{"name": "ETCD_PD_MODEL_PATH", "value": OTHER}]}


def test_no_answer_is_wrong_when_both_fleets_roll_to_a_model_of_another_layout(
    cell: Release, images: dict[str, str], tmp_path: Path
) -> None:
    new = continue_texts(TEXTS, NEW_TOKENS, make_other_model(tmp_path / "other"))
    assert all(one != other for one, other in zip(cell.expected, new, strict=True)), "or no wrong answer would be seen"
    fleet = other_model(images["engine"])
    with cell.load() as load:
        cell.install({**VALUES, "prefill": fleet, "decode": fleet})
        cell.await_ready()
        rolled = len(load.answers)
        wait_until(lambda: len(load.answers) > rolled + 20, "requests end", STEP_SECONDS, every=0.5)
    assert load.wrong(ENGINE_LOST, also=new) == []
    found = [(number, list(answer.tokens)) for number, answer in load.answers]
    assert any(tokens == cell.expected[number] for number, tokens in found)
    assert all(tokens == new[number] for number, tokens in found[-8:])
