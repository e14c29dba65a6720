"""What a prefill must have in common with a decode: said in the instance's fingerprint, compared at decode."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from ..wire.values import PrefillInstance

log = logging.getLogger(__name__)

#: What of a model's configuration may differ: where it lies, who wrote it, and how its weights are kept.
_FREE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config"})
#: In these a difference is only warned of.
_MAY_DIFFER = frozenset({"sglang", "tp_size", "pp_size"})
#: Revisions and weight versions that say nothing.
_UNNAMED = (None, "", "default")


def own_fingerprint(manager: Any) -> str:
    """This process's: ``name=value`` words, which people can read in etcd."""
    return " ".join(f"{name}={value}" for name, value in _own(manager).items() if value)


def differences(manager: Any, instance: PrefillInstance) -> str:
    """Why an instance's KV caches are of no use to this decode, in a sentence; empty where they are.

    ``ETCD_PD_FINGERPRINT=warn`` makes a warning of what would be refused.
    """
    mine, theirs = _own(manager), _of(instance)
    different = {name for name, value in theirs.items() if value and mine.get(name) and value != mine[name]}
    said = {name: f"{name} is {theirs[name]} there and {mine[name]} here" for name in sorted(different)}
    warned = different if os.environ.get("ETCD_PD_FINGERPRINT") == "warn" else different & _MAY_DIFFER
    if warned:
        log.warning("etcd_pd: prefill %s: %s", instance.id, ", ".join(said[name] for name in sorted(warned)))
    return ", ".join(said[name] for name in sorted(different - warned))


def _of(instance: PrefillInstance) -> dict[str, str]:
    words = (word.partition("=") for word in instance.info.fingerprint.split())
    said = {name: value for name, _, value in words}
    topology = instance.info.topology
    said |= {"tp_size": str(topology.tp), "pp_size": str(topology.pp)}
    return said | _layout(instance.info.extra)  # the gateway, and older releases, say this alone


def _own(manager: Any) -> dict[str, str]:
    layout = {"kv_cache_dtype": manager.kv_cache_dtype_str, "kv_layout": manager.kv_layout}
    said = {"model": _model(manager), **_weights(getattr(manager, "server_args", None)), "sglang": version("sglang")}
    said |= {"tp_size": str(manager.attn_tp_size), "pp_size": str(manager.pp_size)}
    return said | _layout({"page_size": manager.kv_args.page_size, **layout})


def _layout(said: Mapping[str, Any]) -> dict[str, str]:
    names = ("page_size", "kv_cache_dtype", "kv_layout")
    return {name: str(said[name]) for name in names if said.get(name) is not None}


def _weights(args: Any) -> dict[str, str]:
    """Which weights the command line names: two trainings of one model have the same configuration."""
    given = {name: getattr(args, name, None) for name in ("revision", "weight_version")}
    return {name: "_".join(str(value).split())[:64] for name, value in given.items() if value not in _UNNAMED}


def _model(manager: Any) -> str:
    """A hash of the model's configuration; empty where it cannot be had."""
    try:
        args = manager.server_args
        return _hash_of_model(args.model_path, args.trust_remote_code, args.revision)
    except Exception as exc:  # whatever a model's own code raises: this check is not worth a start
        log.debug("etcd_pd: no hash of the model's configuration: %s", exc)
        return ""


@lru_cache(maxsize=1)  # a process has one model, and is asked in its scheduler's loop
def _hash_of_model(path: str, trust_remote_code: bool, revision: str | None) -> str:
    from sglang.srt.utils.hf_transformers.config import get_config

    config = get_config(path, trust_remote_code=trust_remote_code, revision=revision)
    fields = {name: value for name, value in config.to_dict().items() if name not in _FREE}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]
