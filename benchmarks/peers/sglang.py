"""SGLang 0.5.23's own bootstrap server, registration and query, unmodified, driven as SGLang drives them.

Runs in SGLang's environment. The server is ``CommonKVBootstrapServer`` in a process of its own, so that it shares no
interpreter with a tokenizer as it does in production; a room is registered by
``CommonKVSender._register_prefill_dp_rank``, one POST, and looked for by ``CommonKVReceiver.query_prefill_dp_ranks``,
one POST for all rooms that are missing. What else a sender's constructor does is left out, which is kind to SGLang.

``session``: the same with one line changed, so that nobody can say that the comparison is unfair: registering reuses a
``requests.Session``, as SGLang's own queries do already.
"""

from __future__ import annotations

import time
import types
from typing import Any

from tests.support import sglang_load

sglang_load.prepare()

import requests  # noqa: E402
from sglang.srt.disaggregation.common import conn  # noqa: E402

from . import DP_RANK  # noqa: E402

#: How long the server may take to answer its first request, seconds.
START_SECONDS = 30.0


class Server:
    """The bootstrap server, once it answers.

    Args:
        config: ``port`` on loopback.

    Attributes:
        port: the same.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.port = port = config["port"]
        self._server = conn.CommonKVBootstrapServer("127.0.0.1", port)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1).raise_for_status()
                return
            except requests.RequestException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class SGLangWriter:
    """A prefill scheduler's side.

    Args:
        config: ``address`` of the server.
    """

    blocking = True

    def __init__(self, config: dict[str, Any]) -> None:
        self._sender: Any = conn.CommonKVSender.__new__(conn.CommonKVSender)
        self._sender.bootstrap_server_url = config["address"]
        self._sender.kv_mgr = types.SimpleNamespace(attn_dp_rank=DP_RANK)
        self._reused = types.SimpleNamespace(post=requests.Session().post, Session=requests.Session)

    def configure(self, message: dict[str, Any]) -> None:
        """``session``: whether connections are reused."""
        conn.requests = self._reused if message.get("session") else requests

    def register(self, room: int) -> None:
        """One POST; it has been answered when this returns."""
        self._sender.bootstrap_room = room
        self._sender._register_prefill_dp_rank()

    def turn(self) -> list[int]:
        """Nothing: register() has returned, so the server has answered."""
        return []

    def release(self, room: int) -> None:
        """Nothing: the server forgets rooms by age."""

    def filenos(self) -> list[int]:
        """Nothing to wait for."""
        return []


class SGLangReader:
    """A decode scheduler's side.

    Args:
        config: ``address`` of the server.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._address = config["address"]
        self._missing: dict[int, None] = {}
        self._seconds, self._next = 0.0, 0.0

    def configure(self, message: dict[str, Any]) -> None:
        """``look_ms``: time from one query to the next."""
        self._seconds, self._next = message.get("look_ms", 0) / 1e3, 0.0
        self._missing.clear()

    def want(self, room: int) -> None:
        """Ask for it from the next query on."""
        self._missing[room] = None

    def turn(self, now: float) -> list[int]:
        """One query for all rooms that are missing, unless the last was a moment ago."""
        if not self._missing or now < self._next:
            return []
        self._next = now + self._seconds
        found = conn.CommonKVReceiver.query_prefill_dp_ranks(self._address, list(self._missing))
        rooms = [int(room) for room, rank in found.items() if rank == DP_RANK]
        for room in rooms:
            del self._missing[room]
        return rooms

    def done(self, room: int) -> float | None:
        """Nothing: a room that was found is asked for no more."""
        return None

    def forget(self, room: int) -> None:
        """Ask for it no more."""
        self._missing.pop(room, None)

    def filenos(self) -> list[int]:
        """Nothing to wait for."""
        return []
