"""What a prefill must have in common with a decode."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from etcd_pd.sglang import fingerprint
from etcd_pd.wire.values import InstanceInfo, PrefillInstance, Topology


@pytest.fixture(autouse=True)
def _sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang itself is not installed here."""
    monkeypatch.setattr(fingerprint, "version", lambda name: "0.5.23")
    monkeypatch.setattr(fingerprint, "_model", lambda manager: manager.model)


def manager(**more: Any) -> SimpleNamespace:
    said = {"model": "abc", "kv_cache_dtype_str": "auto", "kv_layout": None, "attn_tp_size": 1, "pp_size": 1, **more}
    args = SimpleNamespace(revision=said.pop("revision", None), weight_version=said.pop("weight_version", "default"))
    return SimpleNamespace(kv_args=SimpleNamespace(page_size=said.pop("page_size", 64)), server_args=args, **said)


def prefill(**more: Any) -> PrefillInstance:
    """As a prefill with this fingerprint announces itself."""
    of = manager(**more)
    extra = {"page_size": of.kv_args.page_size, "kv_cache_dtype": of.kv_cache_dtype_str, "kv_layout": of.kv_layout}
    topology = Topology(dp=2, tp=of.attn_tp_size, pp=of.pp_size)
    info = InstanceInfo("i", "l", ("h:1",), topology, "x", fingerprint.own_fingerprint(of), extra=extra)
    return PrefillInstance("p", info, ())


def test_nothing_differs_when_both_sides_are_alike(caplog: pytest.LogCaptureFixture) -> None:
    assert fingerprint.differences(manager(), prefill()) == ""
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "xyz"}, "model is xyz there and abc here"),
        ({"page_size": 1}, "page_size is 1 there and 64 here"),
        ({"kv_cache_dtype_str": "fp8"}, "kv_cache_dtype is fp8 there and auto here"),
        ({"model": "xyz", "page_size": 1}, "model is xyz there and abc here, page_size is 1 there and 64 here"),
    ],
)
def test_what_differs_is_named_when_a_prefill_does_not_fit(change: dict[str, Any], sentence: str) -> None:
    assert fingerprint.differences(manager(), prefill(**change)) == sentence


@pytest.mark.parametrize("name", ["revision", "weight_version"])
def test_weights_differ_when_both_sides_name_them(name: str) -> None:
    here = manager(**{name: "2 b"})
    assert fingerprint.differences(here, prefill(**{name: "1"})) == f"{name} is 1 there and 2_b here"
    assert fingerprint.differences(here, prefill()) == ""
    assert "default" not in fingerprint.own_fingerprint(manager())


@pytest.mark.parametrize("unknown", ["model", "kv_layout"])
def test_what_one_side_does_not_know_makes_no_difference(unknown: str) -> None:
    assert fingerprint.differences(manager(**{unknown: ""}), prefill(**{unknown: "some"})) == ""


def test_parallel_sizes_and_versions_are_only_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = prefill(attn_tp_size=4)
    monkeypatch.setattr(fingerprint, "version", lambda name: "0.5.20")
    with caplog.at_level(logging.WARNING):
        assert fingerprint.differences(manager(), other) == ""
    assert "sglang is 0.5.23 there and 0.5.20 here, tp_size is 4 there and 1 here" in caplog.text


def test_everything_is_only_warned_of_when_the_switch_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_PD_FINGERPRINT", "warn")
    assert fingerprint.differences(manager(), prefill(model="xyz")) == ""
    assert "model is xyz there" in caplog.text
