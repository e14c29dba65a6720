"""What etcd itself costs from Python: a Txn and a prefix watch written by hand on plain gRPC stubs, no library.

No agent, no socket between processes, no epochs, no resuming: the process that writes is the one that registers, and
the process that reads is the one that wants to know. Each of them does nothing else, so where engines are to spin,
other processes spin beside them. Batches are natural ones: whatever came due while the last Txn was in flight.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from etcd_pd.store import etcdrpc as rpc

from ..loops import HOLD_SECONDS, NAP_SECONDS, STRAGGLER_SECONDS, TAIL_SECONDS
from . import DP_RANK

#: As the agent's own default: etcd takes 128 operations.
BATCH = 120
#: How long a room's end may wait for a transaction to go with, seconds.
LINGER_SECONDS = 0.1
#: Lease under the rooms, seconds.
TTL = 320
#: Rooms on a lease, as the agent's own default.
ROOMS_A_LEASE = 1000
#: Beside the cell, so that no agent sees it.
PREFIX = b"/raw/v1/rooms/prefill-0/"
PREFIX_END = PREFIX[:-1] + b"0"
VALUE = b'{"dp_rank":%d,"epoch":12,"state":"assigned"}' % DP_RANK

Message = dict[str, Any]


def channel(config: Message) -> Any:
    """A channel to the first of ``endpoints``; with the certificate in the directory ``papers`` where there is one."""
    target = urlsplit(config["endpoints"][0]).netloc
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    if not config.get("papers"):
        return grpc.insecure_channel(target, options)
    ca, key, certificate = (Path(config["papers"], name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options)


class FloorWriter:
    """Writes rooms.

    Args:
        config: ``endpoints``, ``papers``.
    """

    def __init__(self, config: Message) -> None:
        opened = channel(config)
        self._kv, self._leases = rpc.KVStub(opened), rpc.LeaseStub(opened)
        self._lease = self._written = 0

    def configure(self, message: Message) -> None:
        """Nothing to do."""

    def _request(self, rooms: list[int], ended: list[int]) -> Any:
        if not self._lease or self._written + len(rooms) > ROOMS_A_LEASE:
            self._lease = self._leases.LeaseGrant(rpc.LeaseGrantRequest(TTL=TTL)).ID
            self._written = 0
        self._written += len(rooms)
        request = rpc.TxnRequest()
        for room in rooms:
            key = PREFIX + b"%d" % room
            request.compare.add(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=0)
            request.success.add().request_put.CopyFrom(rpc.PutRequest(key=key, value=VALUE, lease=self._lease))
        for room in ended:
            request.success.add().request_delete_range.key = PREFIX + b"%d" % room
        return request

    def write_at_rate(self, message: Message) -> Message:
        """As loops.write_at_rate(): a room that came due during a Txn counts from when it was due."""
        start, first, count, rate = message["start"], message["first"], message["count"], message["rate"]
        sent_at, acknowledged_at = [0.0] * count, [0.0] * count
        releases: deque[int] = deque()
        number, slept = 0, True
        end = start + count / rate + TAIL_SECONDS
        while (now := time.monotonic()) < end or releases:
            due = min(count, int((now - start) * rate) + 1) if now >= start else 0
            batch = range(number, min(due, number + BATCH))
            ended: list[int] = []
            # what has ended is in no hurry: it goes with the next rooms, if they come soon
            if batch or (releases and now >= sent_at[releases[0]] + HOLD_SECONDS + LINGER_SECONDS):
                while releases and len(batch) + len(ended) < BATCH and now >= sent_at[releases[0]] + HOLD_SECONDS:
                    ended.append(first + releases.popleft())
            if not batch and not ended:
                time.sleep(min(max((start + number / rate if number < count else end) - now, 0.0), NAP_SECONDS))
                slept = True
                continue
            for each in batch:
                sent_at[each] = now if slept else start + each / rate
            self._commit(self._request([first + each for each in batch], ended))
            done, slept, number = time.monotonic(), False, number + len(batch)
            for each in batch:
                acknowledged_at[each] = done
                releases.append(each)
        return {"sent_at": sent_at, "acknowledged_at": acknowledged_at, "wall_us": [], "cpu_us": [], "clock_us": []}

    def write_flat_out(self, message: Message) -> Message:
        """As loops.write_flat_out(): full Txns, two in flight."""
        first, count = message["first"], message["count"]
        while time.monotonic() < message["start"]:
            time.sleep(NAP_SECONDS)
        flying: deque[Any] = deque()
        began = time.monotonic()
        for begin in range(0, count, BATCH):
            flying.append(
                self._kv.Txn.future(self._request([*range(first + begin, first + min(begin + BATCH, count))], []))
            )
            if len(flying) == 2:
                _check(flying.popleft().result())
        for future in flying:
            _check(future.result())
        return {"began": began, "ended": time.monotonic(), "count": count}

    def _commit(self, request: Any) -> None:
        _check(self._kv.Txn(request))


class FloorReader:
    """Watches rooms.

    Args:
        config: ``endpoints``, ``papers``.
    """

    def __init__(self, config: Message) -> None:
        self._watch = rpc.WatchStub(channel(config))

    def configure(self, message: Message) -> None:
        """Nothing to do."""

    def read_at_rate(self, message: Message) -> Message:
        """As loops.read_at_rate()."""
        start, first, count, rate = message["start"], message["first"], message["count"], message["rate"]
        found: list[float | None] = [None] * count
        self._read(first, count, start + count / rate + STRAGGLER_SECONDS, found)
        return {"resolved_at": found, "look_us": []}

    def read_flat_out(self, message: Message) -> Message:
        """As loops.read_flat_out()."""
        found: list[float | None] = [None] * message["count"]
        self._read(message["first"], message["count"], message["start"] + message["limit"], found)
        return {"ended": time.monotonic(), "count": sum(at is not None for at in found)}

    def _read(self, first: int, count: int, end: float, found: list[float | None]) -> None:
        create = rpc.WatchCreateRequest(key=PREFIX, range_end=PREFIX_END)
        stopped = threading.Event()

        def requests() -> Any:
            yield rpc.WatchRequest(create_request=create)
            stopped.wait()

        call = self._watch.Watch(requests())
        timer = threading.Timer(max(end - time.monotonic(), 0.1), call.cancel)
        timer.start()
        missing = count
        try:
            for response in call:
                now = time.monotonic()
                for event in response.events:
                    index = int(event.kv.key[len(PREFIX) :]) - first
                    if event.type == 0 and 0 <= index < count and found[index] is None:
                        found[index] = now
                        missing -= 1
                if not missing:
                    return
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise
        finally:
            timer.cancel()
            call.cancel()
            stopped.set()


def _check(response: Any) -> None:
    if not response.succeeded:
        raise RuntimeError("a room was there already")
