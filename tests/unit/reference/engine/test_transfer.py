"""What travels between a decode and a prefill rank, and what hostile peers can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import zmq
from hypothesis import HealthCheck, given, settings, strategies as st
from zmq.utils.garbage import gc

from etcd_pd import ConfigError
from etcd_pd.reference.engine.transfer import (
    Ack,
    Answer,
    Arrival,
    Ask,
    Cancel,
    KVClient,
    KVServer,
    Refusal,
    Request,
    boot_id,
)
from tests.support.waiting import wait_until

BIG_ROOM = 2**63 - 1


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)
    # pyzmq's own thread, which waits until a large message that was not copied has been sent
    gc.stop()


@pytest.fixture
def server(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[KVServer]:
    made = KVServer(context, "127.0.0.1")
    yield made
    made.socket.close(linger=0)


@pytest.fixture
def client(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[KVClient]:
    made = KVClient(context)
    yield made
    made.close()


def heard(server: KVServer) -> Callable[[], list[Request]]:
    return lambda: list(server.receive())


def answer(room: int) -> Answer:
    return Answer(room=room, tokens=3, first_token=9, first_logprob=-0.1, seed=1, registered_ns=5, boot_id="b")


def test_a_cache_is_asked_for_sent_and_acknowledged(server: KVServer, client: KVClient) -> None:
    peer = client.ask("127.0.0.1", server.port, BIG_ROOM)
    [(name, message)] = wait_until(heard(server), "the question")
    assert message == Ask(BIG_ROOM)
    data = bytes(range(256)) * 10_000
    assert server.answer(name, answer(BIG_ROOM), data)
    [arrival] = wait_until(lambda: list(client.receive()), "the answer")
    assert arrival == Arrival(answer(BIG_ROOM), data)
    client.ack(peer, BIG_ROOM)
    assert wait_until(heard(server), "the end") == [Request(name, Ack(BIG_ROOM))]


def test_a_refusal_and_a_cancellation(server: KVServer, client: KVClient) -> None:
    peer = client.ask("127.0.0.1", server.port, 7)
    [(name, _)] = wait_until(heard(server), "the question")
    server.refuse(name, 7, "RoomConflict", "no")
    assert wait_until(lambda: list(client.receive()), "the refusal") == [
        Refusal(room=7, kind="RoomConflict", message="no")
    ]
    client.cancel(peer, 7, "enough")
    assert wait_until(heard(server), "the cancellation") == [Request(name, Cancel(7, "enough"))]


def test_peers_share_one_connection_and_keep_their_names(server: KVServer, client: KVClient) -> None:
    for room in range(20):
        client.ask("127.0.0.1", server.port, room)
    assert len(client.sockets) == 1
    requests: list[Request] = []

    def all_heard() -> bool:
        requests.extend(server.receive())
        return len(requests) == 20

    wait_until(all_heard, "twenty questions")
    assert len({request.peer for request in requests}) == 1


def test_an_answer_to_nobody_is_not_sent(server: KVServer) -> None:
    assert not server.answer(b"nobody", answer(1), b"")
    server.refuse(b"nobody", 1, "x", "y")


def test_asking_where_nobody_listens_does_not_block(client: KVClient, free_port: Callable[[], int]) -> None:
    peer = client.ask("127.0.0.1", free_port(), 1)
    client.cancel(peer, 1, "nobody there")
    assert list(client.receive()) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_garbage_is_counted_and_nothing_more(
    context: zmq.Context[zmq.Socket[bytes]], server: KVServer, frames: list[bytes]
) -> None:
    before = server.garbage
    with context.socket(zmq.DEALER) as hostile:
        hostile.connect(f"tcp://127.0.0.1:{server.port}")
        hostile.send_multipart(frames)
        wait_until(lambda: list(server.receive()) or server.garbage > before, "a reaction")
        hostile.setsockopt(zmq.LINGER, 0)


def test_a_message_that_is_too_large_ends_its_connection_alone(
    context: zmq.Context[zmq.Socket[bytes]], server: KVServer, client: KVClient
) -> None:
    with context.socket(zmq.DEALER) as hostile:
        hostile.setsockopt(zmq.LINGER, 0)
        hostile.connect(f"tcp://127.0.0.1:{server.port}")
        hostile.send(b"x" * 100_000)
        client.ask("127.0.0.1", server.port, 5)
        assert [request.message for request in wait_until(heard(server), "the question")] == [Ask(5)]


def test_garbage_from_a_rank_is_counted_too(context: zmq.Context[zmq.Socket[bytes]], client: KVClient) -> None:
    with context.socket(zmq.ROUTER) as rank:
        port = rank.bind_to_random_port("tcp://127.0.0.1")
        client.ask("127.0.0.1", port, 1)
        name, _ = rank.recv_multipart()
        rank.send_multipart([name, b"\xff\x00garbage", b"more"])
        wait_until(lambda: list(client.receive()) or client.garbage, "a reaction")
        assert client.garbage == 1


def test_an_address_of_another_machine(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with pytest.raises(ConfigError) as caught:
        KVServer(context, "192.0.2.1")
    assert caught.value.field == "kv_host"


def test_the_boot_id_is_one_for_all_processes() -> None:
    assert boot_id() == boot_id() != ""
