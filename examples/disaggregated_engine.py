"""A disaggregated engine in miniature, to copy from: everything that an engine says to etcd_pd, and nothing more.

    etcd-pd run --etcd http://127.0.0.1:2379 -- python examples/disaggregated_engine.py

starts two prefill ranks and a decode, plays the router for eight requests, and prints what decode fetched. The engine
itself is a toy: a "KV cache" is a line of text, handed over on a TCP connection. What matters is where an engine's loop
calls the client: nowhere does a call wait.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

import etcd_pd

INSTANCE, DP_SIZE = "example-prefill", 2
#: Longest turn of a loop that has nothing to do. It must be shorter than the heartbeat.
TURN_SECONDS = 0.05
HEARTBEAT_SECONDS = 5.0


class Prefill:
    """One DP rank of a prefill instance."""

    def __init__(self, client: etcd_pd.Client, dp_rank: int, launch_id: str) -> None:
        self.client, self.dp_rank = client, dp_rank
        self.caches: dict[int, str] = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        client.prefill.announce(
            INSTANCE,
            rank=etcd_pd.Rank(dp_rank),
            topology=etcd_pd.Topology(dp=DP_SIZE),
            launch_id=launch_id,
            addresses=["127.0.0.1:8998"],
            ip="127.0.0.1",
            port=self.listener.getsockname()[1],
            fingerprint="example-model/text-cache/1",
        )

    def take(self, room: int) -> None:
        """A request was dispatched to this rank: say so first, compute then, so that decode can connect meanwhile."""
        try:
            self.client.prefill.register(room)
        except (etcd_pd.AgentBusy, etcd_pd.RegistrationError) as error:
            print(f"prefill {self.dp_rank}: room {room} is not served: {error}", flush=True)
            return
        self.caches[room] = f"cache of room {room}"

    def turn(self) -> None:
        """One turn of the loop: what became of the registrations?"""
        for event in self.client.prefill.poll():
            if isinstance(event, etcd_pd.Rejected):  # another rank has the room, or etcd took no write in time
                self.caches.pop(event.room, None)
                print(f"prefill {self.dp_rank}: {event.error}", flush=True)
            elif isinstance(event, etcd_pd.RankEnded):  # decode has given up on everything that this rank held
                self.caches.clear()
            elif isinstance(event, etcd_pd.Refused):
                sys.exit(f"prefill {self.dp_rank}: {event.error}")

    def hand_over(self) -> None:
        """A decode connected: send what it asks for, then give the room back."""
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rw") as lines:
            room = int(lines.readline())
            cache = self.caches.pop(room, None)
            if cache is None:
                self.client.prefill.fail(room, "its cache is gone")
                return
            lines.write(cache + "\n")
        self.client.prefill.release(room)


class Decode:
    """One decode process."""

    def __init__(self, client: etcd_pd.Client) -> None:
        self.client = client
        client.decode.announce("example-decode")

    def take(self, room: int) -> None:
        """A request arrived: ask for the rank that has its cache. The answer comes when it is known."""
        self.client.decode.want(INSTANCE, room, timeout=30)

    def turn(self) -> None:
        """One turn of the loop: which rooms have a rank by now, and which will not come?"""
        for event in self.client.decode.poll():
            if isinstance(event, etcd_pd.Resolved):
                self.fetch(event.assignment)
            elif isinstance(event, etcd_pd.Ended):
                self.client.decode.done(event.error.instance, event.error.room)
                print(f"failed: {event.error}", flush=True)

    def fetch(self, found: etcd_pd.Assignment) -> None:
        """Fetch a cache from where the registry says it is."""
        instance = self.client.decode.instance(found.instance)
        assert instance is not None  # it is told before its rooms
        for endpoint in instance.endpoints(found.dp_rank):
            with (
                socket.create_connection((endpoint.ip, endpoint.port)) as connection,
                connection.makefile("rw") as lines,
            ):
                lines.write(f"{found.room}\n")
                lines.flush()
                print(f"room {found.room} from dp_rank {found.dp_rank}: {lines.readline().strip()}", flush=True)
        self.client.decode.done(found.instance, found.room)


def run(worker: Prefill | Decode) -> None:
    """The loop: requests (rooms, one a line on stdin), the agent's news, and the transfer's connections."""
    requests, unread = sys.stdin.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        if isinstance(worker, Prefill):
            selector.register(worker.listener, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(TURN_SECONDS)]
            if requests in ready:
                read = os.read(requests, 4096)
                if not read:
                    return
                *rooms, unread = (unread + read).split(b"\n")
                for room in rooms:
                    worker.take(int(room))
            worker.turn()  # also where nothing is ready: it is what the agent hears of this process
            if isinstance(worker, Prefill) and worker.listener in ready:
                worker.hand_over()


def route(requests: int) -> Iterator[str]:
    """The router's part: the same room to one prefill rank and to decode."""
    launch_id = str(uuid.uuid4())

    def start(*role: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, *role, "--launch-id", launch_id]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    prefills = [start("prefill", "--dp-rank", str(dp_rank)) for dp_rank in range(DP_SIZE)]
    decode = start("decode")
    assert decode.stdout
    for number in range(requests):
        room = int.from_bytes(os.urandom(8), "big") >> 1  # 63 bits, as SGLang's router draws them
        for process in (prefills[number * number % DP_SIZE], decode):
            assert process.stdin
            process.stdin.write(f"{room}\n")
    for _ in range(requests):
        yield decode.stdout.readline().strip()
    for process in (decode, *prefills):
        process.communicate()


def main() -> None:
    """Play one of the parts, or start them all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", nargs="?", choices=["prefill", "decode"])
    parser.add_argument("--dp-rank", type=int, default=0)
    parser.add_argument("--launch-id", default="")
    parser.add_argument("--requests", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.role is None:
        for line in route(arguments.requests):
            print(line)
        return
    with etcd_pd.connect(heartbeat=HEARTBEAT_SECONDS) as client:  # to $ETCD_PD_SOCKET
        if arguments.role == "prefill":
            run(Prefill(client, arguments.dp_rank, arguments.launch_id))
        else:
            run(Decode(client))


if __name__ == "__main__":
    main()
