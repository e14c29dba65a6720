"""SGLang's processes for the tests, in SGLang's environment: ``python -m tests.sglang.peer SOCKET``.

Imports SGLang once, listens, and forks one process per connection, which plays one scheduler process (or one bootstrap
server) with SGLang's own classes. A connection carries one JSON object a line: ``{"do": NAME, ...}``, answered by
``{"result": ...}`` or ``{"error": TEXT}``. The first line gives the process its environment.

What is not SGLang's own here: the configuration that SGLang reads from its command line, and the backend's two messages
that describe GPU memory.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import json
import logging
import os
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

from tests.support import sglang_load

sglang_load.prepare()

from sglang.srt import runtime_context  # noqa: E402
from sglang.srt.disaggregation import decode as sglang_decode  # noqa: E402
from sglang.srt.disaggregation.base.conn import KVPoll  # noqa: E402
from sglang.srt.disaggregation.common import conn  # noqa: E402
from sglang.srt.disaggregation.utils import DisaggregationMode  # noqa: E402
from sglang.srt.managers import data_parallel_controller as controller, io_struct, scheduler  # noqa: E402

_PARALLEL: dict[str, Any] = {
    "attn_cp_rank": 0,
    "attn_cp_size": 1,
    "attn_dcp_rank": 0,
    "attn_dcp_size": 1,
    "attn_dp_rank": 0,
    "attn_dp_size": 1,
    "attn_tp_rank": 0,
    "attn_tp_size": 1,
    "dist_init_addr": None,
    "dp_size": 1,
    "enable_cp_tp_group_sharing": False,
    "enable_dsa_cache_layer_split": False,
    "enable_kv_cache_sharding": False,
    "load_balance_method": "round_robin",
    "nnodes": 1,
    "pp_group": None,
    "pp_rank": 0,
    "pp_size": 1,
}


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


class Manager(conn.CommonKVManager):  # type: ignore[misc]
    """The common manager with a backend that has no memory to describe."""

    def build_receiver_registration_message(self) -> list[bytes]:
        return [b"registration"]


class Sender(conn.CommonKVSender):  # type: ignore[misc]
    """The common sender, of a backend that overrides nothing that matters here."""


class Receiver(conn.CommonKVReceiver):  # type: ignore[misc]
    """The common receiver, likewise."""


class Peer:
    """One process; its public methods are what a test may ask for."""

    def __init__(self) -> None:
        self._records = Records()
        logging.basicConfig(level="INFO", handlers=[self._records], force=True)
        self._server: Any = None
        self._manager: Any = None
        self._queue: Any = None
        self._senders: dict[int, list[Any]] = {}
        self._receivers: dict[int, Any] = {}

    def pid(self) -> int:
        return os.getpid()

    def log(self) -> list[str]:
        return self._records.lines

    def load_plugins(self) -> list[str]:
        """As SGLang does early in each of its processes; the targets that were patched."""
        from sglang.srt.plugins import load_plugins
        from sglang.srt.plugins.hook_registry import HookRegistry

        load_plugins()
        return sorted(HookRegistry._patched)

    def remove(self, name: str) -> None:
        """Play a release of SGLang that does not have something."""
        owner, _, attribute = name.rpartition(".")
        module, _, cls = owner.rpartition(".")
        delattr(getattr(importlib.import_module(module), cls), attribute)

    def moved_names(self) -> list[str]:
        from etcd_pd.sglang import plugin as sglang

        return sglang.moved_names()

    def loaded(self, prefixes: list[str]) -> list[str]:
        """Modules of these packages that this process has imported."""
        return sorted(name for name in sys.modules if name.partition(".")[0] in prefixes)

    def redefined(self, methods: list[str]) -> list[str]:
        """Where SGLang's transfer backends define methods of these names themselves."""
        found = []
        for path in sorted(Path(conn.__file__).parents[1].glob("*/conn.py")):
            if path.parent.name in ("base", "common"):
                continue
            for cls in ast.parse(path.read_text()).body:
                if isinstance(cls, ast.ClassDef) and any("CommonKV" in ast.unparse(base) for base in cls.bases):
                    names = [part.name for part in cls.body if isinstance(part, ast.FunctionDef)]
                    found += [f"{cls.name}.{name}" for name in names if name in methods]
        return found

    def version(self) -> str:
        return importlib.metadata.version("sglang")

    def entry_points(self) -> list[str]:
        """What is installed as a plug-in of SGLang's."""
        return [entry.value for entry in importlib.metadata.entry_points(group="sglang.srt.plugins")]

    def parse(self, arguments: list[str]) -> dict[str, Any]:
        """What SGLang's command line makes of these words, as far as that is plain values."""
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser()
        ServerArgs.add_cli_args(parser)
        return {name: value for name, value in vars(parser.parse_args(arguments)).items() if type(value) in (int, str)}

    # --- configuration

    def configure(self, parallel: dict[str, Any], serving: dict[str, Any], disagg: dict[str, Any]) -> None:
        """What the command line would say."""
        fields = {**_PARALLEL, **parallel}
        fields.setdefault("num_dp_ranks", fields["dp_size"] * fields["attn_dp_size"])
        found = {
            "get_parallel": types.SimpleNamespace(**fields),
            "get_serving": types.SimpleNamespace(**serving),
            "get_disagg": types.SimpleNamespace(disaggregation_decode_allocation_policy="early", **disagg),
            "get_observability": types.SimpleNamespace(enable_trace=False),
            "linear_attn_tp_size": fields["attn_tp_size"],
        }
        for module in (runtime_context, conn, sglang_decode, scheduler):
            for name, value in found.items():
                if hasattr(module, name):
                    setattr(module, name, lambda value=value: value)

    # --- SGLang's own bootstrap server

    def serve(self, host: str, port: int) -> None:
        self._server = conn.CommonKVBootstrapServer(host, port)

    # --- prefill

    def prefill(self, system_dp_rank: int = 0, page_size: int = 64) -> None:
        """Make a rank's manager, which registers itself."""
        self._manager = Manager(_kv_args(system_dp_rank, page_size), DisaggregationMode.PREFILL, None)

    def endpoint(self) -> list[Any]:
        """This rank's ip and port."""
        return [self._manager.local_ip, self._manager.rank_port]

    def take(self, room: int, address: str, named: bool = False) -> str:
        """A request arrived at this rank; its status."""
        sender = Sender(self._manager, address, room, named)
        self._senders.setdefault(room, []).append(sender)
        return self.sent(room)

    def sent(self, room: int) -> str:
        """Status of a request at this rank."""
        return _name(self._senders[room][-1].poll())

    def finish(self, room: int) -> None:
        """The KV cache was handed over."""
        sender = self._senders[room].pop()
        self._manager.update_status(room, KVPoll.Success)
        sender.poll()
        sender.clear()

    def abort(self, room: int) -> str:
        """The request was aborted at this rank; what SGLang reports."""
        sender = self._senders[room].pop()
        sender.abort()
        return _failure(sender)

    def sent_failure(self, room: int) -> str:
        """What SGLang reports of a request that failed at this rank."""
        return _failure(self._senders[room].pop())

    # --- decode

    def decode(self, page_size: int = 64) -> None:
        """Make a decode process's manager and queue."""
        self._manager = Manager(_kv_args(0, page_size), DisaggregationMode.DECODE, None)
        queue: Any = sglang_decode.DecodePreallocQueue.__new__(sglang_decode.DecodePreallocQueue)
        queue.kv_manager, queue.queue, queue.pending_reqs = self._manager, [], []
        queue._prefill_dp_rank_queries, queue._ensure_retry_count, queue._ensure_last_attempt_time = {}, {}, {}
        queue._max_ensure_retries, queue._ensure_retry_interval = 15, 0.05
        self._queue = queue

    def start_heartbeat(self, interval: float) -> None:
        """SGLang's own heartbeat thread, at an interval of the test's choice."""
        self._manager.heartbeat_interval = interval
        self._manager._start_heartbeat_checker_thread()

    def arrive(self, host: str, port: int, room: int, named: int | None = None) -> None:
        """A request arrives at decode, as DecodePreallocQueue.add() takes it."""
        req = types.SimpleNamespace(
            bootstrap_host=host, bootstrap_port=port, bootstrap_room=room, disagg_prefill_dp_rank=named, rid=str(room)
        )
        receiver = Receiver(self._manager, sglang_decode._bootstrap_addr(req), room)
        self._receivers[room] = receiver
        request = sglang_decode.DecodeRequest(req=req, kv_receiver=receiver)
        rank = self._queue._resolve_prefill_dp_rank(req)
        if rank is not None:
            self._queue._init_receiver(request, rank)
        else:
            self._queue.pending_reqs.append(request)

    def step(self, prefetch: bool = False) -> dict[str, Any]:
        """A turn of the scheduler's loop: all rooms that have arrived, each with its status and its rank."""
        self._turn()
        if self._queue is not None:
            if prefetch:
                self._queue.prefetch_prefill_dp_rank_queries()
            self._queue._resolve_pending_reqs()
        return {
            str(room): [_name(receiver.poll()), getattr(receiver, "prefill_dp_rank", None)]
            for room, receiver in self._receivers.items()
        }

    def endpoints(self, room: int) -> list[list[Any]]:
        """Where a resolved room's KV cache would be fetched."""
        return [[info["rank_ip"], info["rank_port"], info["pp_rank"]] for info in self._receivers[room].bootstrap_infos]

    def received_failure(self, room: int) -> str:
        """What SGLang reports of a room that failed at decode."""
        return _failure(self._receivers.pop(room))

    def fetched(self, room: int) -> None:
        """The KV cache has arrived."""
        self._manager.update_status(room, KVPoll.Success)
        self._receivers.pop(room).clear()

    def known_topology(self, address: str) -> dict[str, Any] | None:
        """What decode holds of a prefill."""
        info = self._manager.prefill_info_table.get(address)
        return None if info is None else dict(vars(info))

    def known_ranks(self, address: str) -> list[list[Any]]:
        """Where the registry says that the ranks at an address hand over."""
        from etcd_pd.sglang import plugin

        instance = plugin._session().client.decode.instance(address)
        return [[one.ip, one.port] for one in instance.ranks] if instance else []

    def ensure(self, address: str) -> bool:
        """Fetch a prefill's topology; raises what SGLang raises where the two do not fit."""
        return bool(self._manager.try_ensure_parallel_info(address))

    def query(self, address: str, rooms: list[int]) -> dict[str, int]:
        found: dict[str, int] = Receiver.query_prefill_dp_ranks(address, rooms)
        return found

    # --- requests and their dispatch

    def rooms_of(self, room: Any, prompts: int, n: int) -> list[Any]:
        """The rooms of the samples of a request, as SGLang normalises it."""
        request = io_struct.GenerateReqInput(
            input_ids=[[1, 2, 3]] * prompts if prompts > 1 else [1, 2, 3],
            bootstrap_room=room,
            bootstrap_host="127.0.0.1",
            bootstrap_port=8998,
            sampling_params={"n": n},
        )
        request.normalize_batch_and_arguments()
        rooms = request.bootstrap_room
        return list(rooms) if isinstance(rooms, list) else [rooms]

    def dispatch(self, method: str, dp_size: int, rooms: list[int]) -> list[int]:
        """The DP ranks to which SGLang's controller sends requests with these rooms."""
        chosen: list[int] = []
        controller.sock_send = lambda worker, request: chosen.append(worker)
        boss: Any = controller.DataParallelController.__new__(controller.DataParallelController)
        boss.workers, boss._active_workers = list(range(dp_size)), list(range(dp_size))
        boss.status, boss.round_robin_counter = [True] * dp_size, 0
        boss.dp_budget = controller.DPBudget(dp_size)
        send = getattr(boss, f"{method}_scheduler")
        for number, room in enumerate(rooms):
            tokens = [0] * (1 + number % 3)
            send(types.SimpleNamespace(bootstrap_room=room, routed_dp_rank=None, input_ids=tokens))
        return chosen

    def _turn(self) -> None:
        """Scheduler.ingest_requests() with nothing to ingest."""
        idle: Any = types.SimpleNamespace(
            _deferred_input_requests=[],
            _poll_timeout_aborts=list,
            process_input_requests=lambda requests: None,
            request_receiver=types.SimpleNamespace(recv_requests=lambda **_: []),
        )
        scheduler.Scheduler.ingest_requests(idle)


def _kv_args(system_dp_rank: int, page_size: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        aux_data_ptrs=[],
        engine_rank=0,
        kv_cache_dtype_str="auto",
        kv_item_lens=[],
        kv_layout=None,
        page_size=page_size,
        pp_rank=0,
        state_item_lens=[],
        state_types=[],
        system_dp_rank=system_dp_rank,
    )


def _name(status: Any) -> str:
    names = (name for name, value in vars(KVPoll).items() if value == status and not name.startswith("_"))
    return str(next(names))


def _failure(side: Any) -> str:
    try:
        side.failure_exception()
    except conn.KVTransferError as error:
        return str(error.failure_reason)
    return ""


def _play(connection: socket.socket) -> None:
    lines = connection.makefile("rw")
    os.environ.update(json.loads(lines.readline()))
    peer = Peer()
    for line in lines:
        message = json.loads(line)
        try:
            answer = {"result": getattr(peer, message.pop("do"))(**message)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        lines.write(json.dumps(answer) + "\n")
        lines.flush()


def main(path: str) -> None:
    """Fork one process per connection until this one is told to end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _play(connection)
                os._exit(0)  # threads of SGLang's must not keep it
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
