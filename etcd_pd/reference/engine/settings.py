"""Frozen settings of one engine instance, in the style of :mod:`etcd_pd.config`: checked where they are made."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from etcd_pd import ConfigError
from etcd_pd.config import bracketed, default_socket_path
from etcd_pd.reference.balance import POLICIES
from etcd_pd.wire.limits import MAX_PARALLEL, check_int, check_name

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
REAL, EMULATED = "real", "emulated"
FOLLOW_BOOTSTRAP_ROOM = "follow_bootstrap_room"

_WILDCARDS = ("0.0.0.0", "::", "")


def _option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class EngineSettings:
    """What a prefill and a decode instance have in common."""

    port: int
    instance: str = _option("", "stable id of this instance; empty: HOSTNAME-PORT")
    host: str = _option("127.0.0.1", "address that HTTP requests come in on")
    socket_path: str = field(
        default_factory=default_socket_path,
        metadata={"help": "Unix socket of this node's etcd-pd agent", "name": "socket"},
    )
    dp_size: int = _option(1, "data-parallel ranks, one process each")
    policy: str = _option("round_robin", "which rank takes a request", choices=tuple(POLICIES))
    model_path: str = _option("", "directory of a Hugging Face causal model; empty: a tiny Llama, made at first use")
    served_model_name: str = _option("", "name that /v1/models shows; empty: the model directory's")
    device: str = _option("cpu", "where the model runs", choices=DEVICES)
    dtype: str = _option("float32", "number format of the model and of its KV cache", choices=DTYPES)
    threads: int = _option(0, "torch threads of one rank; 0: the CPUs that may be used, divided among the ranks")
    compute: str = _option(
        REAL, "real: run the model; emulated: take the time that a cost model states", choices=(REAL, EMULATED)
    )
    emulated_prefill_tokens_per_second: float = _option(20_000.0, "cost model: prompt tokens that one rank computes")
    emulated_decode_steps_per_second: float = _option(100.0, "cost model: tokens of each running request")
    startup_timeout_seconds: float = _option(120.0, "how long the ranks may take to load the model")
    drain_timeout_seconds: float = _option(10.0, "how long requests may go on after SIGTERM")

    def __post_init__(self) -> None:
        check_int("port", self.port, 1, 65535)
        check_name("instance", self.instance_id)
        if self.host:
            check_name("host", self.host)
        check_int("dp_size", self.dp_size, 1, MAX_PARALLEL)
        _check_choice("policy", self.policy, tuple(POLICIES))
        _check_choice("device", self.device, DEVICES)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("compute", self.compute, (REAL, EMULATED))
        check_int("threads", self.threads, 0, 4096)
        if self.model_path and not os.path.isfile(os.path.join(self.model_path, "config.json")):
            raise ConfigError("model_path", f"must be a directory with a config.json, not {self.model_path!r}")
        if len(os.fsencode(self.socket_path)) > 107:
            raise ConfigError("socket", "a Unix socket's path has at most 107 bytes")
        _check_number("emulated_prefill_tokens_per_second", self.emulated_prefill_tokens_per_second, 1, 1e9)
        _check_number("emulated_decode_steps_per_second", self.emulated_decode_steps_per_second, 0.1, 1e6)
        _check_number("startup_timeout_seconds", self.startup_timeout_seconds, 1, 86400)
        _check_number("drain_timeout_seconds", self.drain_timeout_seconds, 0, 3600)

    @property
    def instance_id(self) -> str:
        """The id under which the instance appears in etcd."""
        return self.instance or f"{socket.gethostname()}-{self.port}"

    @property
    def address(self) -> str:
        """Where its HTTP routes are."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def torch_threads(self) -> int:
        """Threads that torch may use in one rank process."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.dp_size)


@dataclass(frozen=True)
class PrefillSettings(EngineSettings):
    """Everything that one prefill instance needs to know."""

    port: int = _option(30001, "port of its HTTP routes")
    bootstrap_port: int = _option(
        8998, "port of the bootstrap address that requests carry, where decode learns how prefill's leg fares"
    )
    bootstrap_hosts: tuple[str, ...] = _option(
        (), "host halves of the bootstrap address, as a router spells them; empty: the host that it binds"
    )
    kv_host: str = _option("", "address that decode fetches KV caches from; empty: the host that it binds")
    bootstrap_timeout_seconds: float = _option(
        300.0, "how long a computed KV cache waits for decode before it is thrown away"
    )
    decode_arrival_seconds: float = _option(
        2.0, "how long a request may wait for decode's leg of it to show up; a router sends both at once"
    )
    chunk_tokens: int = _option(512, "prompt tokens computed between two looks at the network")
    emulated_lock_step: bool = _option(
        False, "cost model: forward passes of whole prompts start and end on all ranks together, as with DP attention"
    )
    emulated_shared_tokens_per_second: float = _option(
        0.0, "cost model, lock-step: tokens of all ranks that what they share (experts) computes; 0: they share nothing"
    )
    emulated_pass_tokens: int = _option(
        16384, "cost model, lock-step: prompt tokens below which a rank's part of a pass takes a further prompt"
    )
    max_held_tokens: int = _option(1_000_000, "tokens of KV cache that may wait for decode before a rank pauses")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("bootstrap_port", self.bootstrap_port, 1, 65535)
        if self.bootstrap_port == self.port:
            raise ConfigError("bootstrap_port", "must not be port")
        for host in self.bootstrap_hosts:
            check_name("bootstrap_hosts", host)
        if self.host in _WILDCARDS and not (self.bootstrap_hosts and self.kv_host):
            raise ConfigError("bootstrap_hosts", f"and kv_host must be given where host is {self.host!r}")
        if self.kv_host in _WILDCARDS[:2]:
            raise ConfigError("kv_host", "must be an address that decode can connect to")
        _check_number("bootstrap_timeout_seconds", self.bootstrap_timeout_seconds, 1, 86400)
        _check_number("decode_arrival_seconds", self.decode_arrival_seconds, 0.1, 86400)
        check_int("chunk_tokens", self.chunk_tokens, 1, 1 << 20)
        if self.emulated_lock_step and self.compute != EMULATED:
            raise ConfigError("emulated_lock_step", f"needs compute {EMULATED}")
        _check_number("emulated_shared_tokens_per_second", self.emulated_shared_tokens_per_second, 0, 1e9)
        check_int("emulated_pass_tokens", self.emulated_pass_tokens, 1, 1 << 30)
        check_int("max_held_tokens", self.max_held_tokens, 1, 1 << 40)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The ``host:port`` spellings by which requests may mean this instance."""
        hosts: Sequence[str] = self.bootstrap_hosts
        if not hosts:
            hosts = (self.host, "localhost") if self.host == "127.0.0.1" else (self.host,)
        return tuple(f"{bracketed(host)}:{self.bootstrap_port}" for host in hosts)

    @property
    def kv_address(self) -> str:
        """The address that its ranks' transfer sockets are bound to."""
        return self.kv_host or self.host

    @property
    def rank_follows_from_request(self) -> bool:
        """Whether decode can tell every request's rank without the registry, so that rooms need no key."""
        return self.dp_size == 1 or self.policy == FOLLOW_BOOTSTRAP_ROOM


@dataclass(frozen=True)
class DecodeSettings(EngineSettings):
    """Everything that one decode instance needs to know."""

    port: int = _option(31001, "port of its HTTP routes")
    kv_timeout_seconds: float = _option(
        60.0, "how long a request may wait for its KV cache; below the router's timeout"
    )
    request_timeout_seconds: float = _option(600.0, "how long a request may take altogether")
    max_batch: int = _option(32, "requests that one rank generates at once; the others wait")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("kv_timeout_seconds", self.kv_timeout_seconds, 0.1, 86400)
        _check_number("request_timeout_seconds", self.request_timeout_seconds, self.kv_timeout_seconds, 86400)
        check_int("max_batch", self.max_batch, 1, 4096)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(name, f"must be one of {', '.join(choices)}, not {value!r:.80}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(name, f"must be a number in {low:g}..{high:g}, not {value!r:.80}")
