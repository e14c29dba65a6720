"""What etcd itself had: watches on every member, by its JSON gateway, sharing nothing with the code under test."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.support.etcdctl import EtcdCtl, EtcdError

from .epochs import Epochs
from .history import Recorder

_RETRY_SECONDS = 0.1
#: A watch that says nothing for so long is taken up again: its member may be frozen.
_SILENCE_SECONDS = 2.0


class Witness:
    """Records ranks and rooms as they come and go, each as early as any member shows it.

    Use it as a context manager; what there is at its start is recorded too.

    Args:
        endpoints: the members.
        root: the cell.
        record: where to; flushed now and then.
        processes: of each DP rank.
        connect: an independent client of a member.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        root: str,
        record: Recorder,
        processes: int = 1,
        connect: Callable[[str], EtcdCtl] = EtcdCtl,
    ) -> None:
        self._endpoints, self._root, self._record = list(endpoints), root, record
        self._epochs, self.connect = Epochs(processes), connect
        self._prefix = f"{root}/v1/"
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._revision = 0
        self._created: dict[str, int] = {}  # create_revision of what stands, by key
        self._watches = [_Watch(endpoint, self) for endpoint in self._endpoints]

    def __enter__(self) -> Witness:
        ctl = self.connect(self._endpoints[0])
        self._revision = ctl.revision()
        for kv in ctl.get_prefix(self._prefix):
            self._put(kv.key, kv.create_revision, kv.mod_revision)
        for watch in self._watches:
            watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stopped.set()
        for watch in self._watches:
            watch.stop()
        self._record.flush()

    @property
    def revision(self) -> int:
        """Up to where it has seen everything."""
        return self._revision

    @property
    def stopped(self) -> bool:
        """Whether it is over."""
        return self._stopped.is_set()

    def wait_stopped(self, seconds: float) -> None:
        """Wait for the end, not longer than this."""
        self._stopped.wait(seconds)

    @property
    def prefix(self) -> str:
        """What it watches."""
        return self._prefix

    def apply(self, events: Sequence[dict[str, Any]]) -> None:
        """Events of one message, which holds whole revisions."""
        with self._lock:
            fresh = [event for event in events if int(event["kv"]["mod_revision"]) > self._revision]
            for event in fresh:
                key = base64.b64decode(event["kv"]["key"]).decode()
                revision = int(event["kv"]["mod_revision"])
                if event.get("type") == "DELETE":
                    created = self._created.pop(key, 0)
                    self._say(key, created, revision, alive=False)
                else:
                    self._put(key, int(event["kv"]["create_revision"]), revision)
                self._revision = revision
            self._record.flush()

    def _put(self, key: str, created: int, revision: int) -> None:
        if self._created.get(key) != created:
            self._created[key] = created
            self._say(key, created, revision, alive=True)

    def _say(self, key: str, created: int, revision: int, *, alive: bool) -> None:
        kind, *parts = key.removeprefix(self._prefix).split("/")
        if kind == "rooms":
            room = {"instance": parts[0], "room": int(parts[1]), "token": created}
            self._record("room", **room, revision=revision, alive=alive)
        elif kind == "prefill" and len(parts) == 3:
            instance, dp_rank = parts[0], int(parts[2].split(".")[0])
            for epoch, lives in self._epochs.change(instance, dp_rank, key, created if alive else 0):
                self._record("rank", instance=instance, dp_rank=dp_rank, epoch=epoch, revision=revision, alive=lives)


class _Watch:
    """One member's watch, taken up again whenever it ends."""

    def __init__(self, endpoint: str, witness: Witness) -> None:
        parts = urlsplit(endpoint)
        self._endpoint, self._address = endpoint, (parts.hostname or "", parts.port or 0)
        self._witness = witness
        self._thread = threading.Thread(target=self._run, name=f"witness {endpoint}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._witness.stopped:
            with suppress(OSError, http.client.HTTPException, ValueError, EtcdError):
                for events in self._follow():
                    self._witness.apply(events)
            self._witness.wait_stopped(_RETRY_SECONDS)

    def _follow(self) -> Iterator[Sequence[dict[str, Any]]]:
        prefix, start = self._witness.prefix, self._witness.revision + 1
        connection = http.client.HTTPConnection(*self._address, timeout=_SILENCE_SECONDS)
        try:
            request = {"key": _encode(prefix), "range_end": _encode(prefix[:-1] + "0"), "start_revision": str(start)}
            headers = self._witness.connect(self._endpoint).headers()
            connection.request("POST", "/v3/watch", json.dumps({"create_request": request}), headers)
            answer = connection.getresponse()
            for line in answer:
                result = json.loads(line).get("result", {})
                if result.get("canceled"):
                    return
                yield result.get("events", ())
        finally:
            connection.close()


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
