"""``python3 -m etcd_pd.kubernetes.round_trip SOCKET SOCKET [ROUTER]``: rooms registered here, resolved there.

What ``helm test`` runs, with an agent that holds the prefill certificate and one that holds the decode certificate, and
then, where there is a router, a request through it, with the key in ``ROUTER_API_KEY``.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from ..client import Client, connect
from ..client.events import Announced, Drained, Refused, Registered, Rejected
from ..errors import EtcdPDError
from ..wire.limits import MAX_ROOM
from ..wire.values import Rank, Topology
from .router import make_request, own_key

ROOMS = 10
TIMEOUT_SECONDS = 60.0
#: Nobody connects to it: the KV cache of these rooms does not exist.
PORT = 9

#: How the instances begin that are announced for it: nobody sends requests with such an address, and no engine has
#: such a name. With one rank of two it could not serve either.
PREFIX = "not-an-engine-"


def run(
    prefill_socket: str,
    decode_socket: str | None,
    timeout: float = TIMEOUT_SECONDS,
    say: Callable[[str], None] = print,
) -> list[float]:
    """Register and resolve some rooms; the seconds that each took. Whatever happens, nothing of it stays in etcd.

    Args:
        prefill_socket: of the agent that registers.
        decode_socket: of the agent that resolves; it may be the same. None: rooms are only registered.
        timeout: seconds that each step may take.
        say: called for each room.

    Raises:
        EtcdPDError: a room was refused, or did not arrive.
    """
    instance = f"{PREFIX}{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    with (
        connect(prefill_socket) as prefill,
        connect(decode_socket) if decode_socket else nullcontext() as decode,
        _announced(prefill, instance, timeout),
    ):
        return [_one(prefill, decode, instance, timeout, say) for _ in range(ROOMS)]


@contextmanager
def _announced(client: Client, instance: str, timeout: float) -> Iterator[None]:
    """An instance that is no engine's, until the context is left."""
    client.prefill.announce(
        instance,
        rank=Rank(1),
        topology=Topology(dp=2),
        launch_id=instance,
        addresses=[f"{instance}:{PORT}"],
        ip="127.0.0.1",
        port=PORT,
    )
    _wait(client, Announced, timeout)
    try:
        yield
    except BaseException:
        with suppress(EtcdPDError):  # what went wrong before is what is said
            _drain(client, timeout)
        raise
    _drain(client, timeout)


def _drain(client: Client, timeout: float) -> None:
    client.prefill.drain()
    _wait(client, Drained, timeout)  # so that the last room's key is gone before its rank is


def _one(prefill: Client, decode: Client | None, instance: str, timeout: float, say: Callable[[str], None]) -> float:
    room = random.randint(0, MAX_ROOM)
    started = time.monotonic()
    prefill.prefill.register(room)
    try:
        _wait(prefill, Registered, timeout)
        if decode:
            found = decode.decode.resolve(instance, room, timeout=timeout)
            if found.dp_rank != 1:
                raise EtcdPDError(f"room {room} resolved to dp_rank {found.dp_rank}, not 1")
        seconds = time.monotonic() - started
        if decode:
            say(f"room={room} dp_rank={found.dp_rank} revision={found.revision} milliseconds={seconds * 1000:.1f}")
            decode.decode.done(instance, room)
    finally:
        prefill.prefill.release(room)
    return seconds


def _wait(client: Client, wanted: type, timeout: float) -> None:
    """Wait for an event of the prefill side.

    Raises:
        EtcdPDError: it was refused, or did not come.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for event in client.prefill.poll():
            if isinstance(event, wanted):
                return
            if isinstance(event, (Refused, Rejected)):
                raise event.error
        time.sleep(0.001)
    raise EtcdPDError(f"no {wanted.__name__} in {timeout:.0f} s; the agent's log says why")


def ask(router: str, key: str = "", timeout: float = TIMEOUT_SECONDS) -> str:
    """Send a request for a few tokens; what the answer says of itself.

    Args:
        router: its URL.
        key: what the router asks for; empty: nothing.
        timeout: seconds that it may take.

    Raises:
        EtcdPDError: it was refused, with what was said, or had no answer.
    """
    wanted = {"text": "The capital of France is", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    request = make_request(f"{router}/generate", key, wanted, "POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            about = json.load(answer)["meta_info"]
    except urllib.error.HTTPError as exc:
        with exc:
            raise EtcdPDError(f"{router}: {exc.code} {exc.read(1000).decode(errors='replace')}") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EtcdPDError(f"{router}: no answer of an engine: {exc!r}") from exc
    return f"{about.get('completion_tokens')} tokens for {about.get('prompt_tokens')}"


def main(arguments: list[str]) -> int:
    """Exit status 0 where every room arrived, and the request was answered."""
    try:
        prefill_socket, decode_socket, *router = arguments
        seconds = run(prefill_socket, decode_socket)
        print(f"ok: {len(seconds)} rooms registered with one certificate and resolved with the other")
        if router:
            print(f"ok: a request through the router: {ask(router[0], own_key())}")
    except EtcdPDError as exc:
        print(f"failed: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
