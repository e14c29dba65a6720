"""Settings of the local stack."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ...config import AgentSettings, EtcdSettings
from ...errors import ConfigError
from ...wire.limits import MAX_PARALLEL, check_int
from ..balance import POLICIES

#: Where a stack may listen, IPv4 first.
LOOPBACKS = ("127.0.0.1", "::1")


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class StackSettings:
    """What ``etcd-pd up`` starts on this machine."""

    etcd: tuple[str, ...] = _option((), "endpoints of an etcd without TLS and users; empty: a local etcd is started")
    root: str = _option(AgentSettings.root, "key prefix of the cell")
    dp_size: int = _option(4, "data-parallel ranks of the prefill instance")
    policy: str = _option("round_robin", "how the prefill instance chooses a rank", choices=tuple(POLICIES))
    decode_instances: int = _option(2, "decode instances")
    model_path: str = _option("", "directory of a Hugging Face causal model; empty: the engine's tiny Llama")
    host: str = _option(LOOPBACKS[0], "loopback address of all but etcd", choices=LOOPBACKS)
    port: int = _option(0, "the router's port; 0: a free one")
    run_dir: str = _option("", "directory for logs and stack.json; empty: a temporary one, kept only after a failure")
    startup_timeout_seconds: float = _option(180.0, "how long each process may take to become ready")

    def __post_init__(self) -> None:
        if self.etcd:
            EtcdSettings(endpoints=self.etcd)
        if any(not endpoint.startswith("http://") for endpoint in self.etcd):
            raise ConfigError("etcd", "must be http:// endpoints: this stack is for development")
        if self.host not in LOOPBACKS:
            raise ConfigError("host", f"must be one of {', '.join(LOOPBACKS)}, not {self.host!r:.80}")
        if self.policy not in POLICIES:
            raise ConfigError("policy", f"must be one of {', '.join(POLICIES)}, not {self.policy!r:.80}")
        check_int("dp_size", self.dp_size, 1, MAX_PARALLEL)
        if self.model_path and not os.path.isfile(os.path.join(self.model_path, "config.json")):
            raise ConfigError("model_path", f"must be a directory with a config.json, not {self.model_path!r}")
        check_int("decode_instances", self.decode_instances, 1, 64)
        check_int("port", self.port, 0, 65535)
