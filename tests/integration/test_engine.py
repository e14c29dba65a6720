"""Prefill and decode instances as processes, over HTTP. The registry is a stand-in; e2e has the real one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import pytest

from benchmarks.front import measure, report
from etcd_pd.reference.engine.messages import Sampling
from etcd_pd.reference.engine.model import Model
from etcd_pd.reference.engine.reference import generate
from etcd_pd.reference.engine.text import Tokenizer
from tests.support.waiting import wait_until
from tests.unit.reference.engine.conftest import model, model_path, tokenizer
from tests.unit.reference.engine.instance import InstanceProcess

__all__ = ["model", "model_path", "tokenizer"]

pytestmark = pytest.mark.timeout(120)


class Stack:
    """One prefill and one decode instance, and what a router does with them."""

    def __init__(self, prefill: InstanceProcess, decode: InstanceProcess) -> None:
        self.prefill = prefill
        self.decode = decode
        self._rooms = random.Random(time.time_ns())

    def room(self) -> int:
        """A fresh room."""
        return self._rooms.getrandbits(63)

    async def send(
        self, session: aiohttp.ClientSession, body: dict[str, Any], path: str = "/generate"
    ) -> tuple[tuple[int, str], tuple[int, str]]:
        """What prefill and decode answer to the same body, sent to both at once."""
        routed = {**self.prefill.address, "bootstrap_room": self.room()}
        both = (post(session, instance, {**routed, **body}, path) for instance in (self.prefill, self.decode))
        first, second = await asyncio.gather(*both)
        return first, second

    def send_all(self, *bodies: dict[str, Any], path: str = "/generate") -> list[tuple[tuple[int, str], ...]]:
        """Several at once."""

        async def run() -> list[tuple[tuple[int, str], ...]]:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
                return list(await asyncio.gather(*(self.send(session, body, path) for body in bodies)))

        return asyncio.run(run())


async def post(
    session: aiohttp.ClientSession, instance: InstanceProcess, body: dict[str, Any], path: str = "/generate"
) -> tuple[int, str]:
    async with session.post(f"{instance.url}{path}", json=body) as response:
        return response.status, await response.text()


def events(text: str) -> list[Any]:
    """The events of a stream that ended properly."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model_path: str) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("engine")
    settings = {"model_path": model_path, "threads": 1}
    prefill = InstanceProcess("prefill", directory, dp_size=2, **settings)
    decode = InstanceProcess("decode", directory, drain_timeout_seconds=0.5, **settings)
    prefill.start()
    with decode:
        prefill.wait_ready()
        with_prefill = Stack(prefill, decode)
        yield with_prefill
        prefill.__exit__(None, None, None)
    assert prefill.process.returncode == decode.process.returncode == 0
    for instance in (prefill, decode):
        assert list(instance.temporary.iterdir()) == []
        assert "Traceback" not in instance.log
    assert list((directory / "registry").glob("rank-*")) == []
    # the stand-in keeps what it was told to fail
    assert all("failed" in path.read_text() for path in (directory / "registry").glob("room-*"))


def scraped(instance: InstanceProcess) -> dict[str, float]:
    """Samples of its /metrics, by ``name{label="value"}``."""
    with urlopen(f"{instance.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_metrics_count_prompts_tokens_and_transfers(stack: Stack) -> None:
    before = scraped(stack.decode), scraped(stack.prefill)
    body = {"text": "count me", "sampling_params": {"max_new_tokens": 5, "ignore_eos": True}}
    assert {status for both in stack.send_all(*[body] * 4) for status, _ in both} == {200}
    decode, prefill = (
        {name: value - earlier.get(name, 0) for name, value in scraped(instance).items()}
        for instance, earlier in zip((stack.decode, stack.prefill), before, strict=True)
    )
    finished = 'etcd_pd_engine_prompts_total{dp_rank="%d",outcome="Finished"}'
    assert decode[finished % 0] == 4 and decode['etcd_pd_engine_tokens_total{dp_rank="0"}'] == 20
    assert prefill[finished % 0] + prefill[finished % 1] == 4
    assert decode["etcd_pd_engine_ttft_seconds_count"] == prefill["etcd_pd_engine_ttft_seconds_count"] == 4
    assert decode["etcd_pd_engine_kv_transfer_seconds_count"] == 4
    assert decode["etcd_pd_engine_kv_transfer_bytes_total"] > 0 == prefill["etcd_pd_engine_kv_transfer_bytes_total"]
    assert scraped(stack.decode)['etcd_pd_engine_rank_prompts{dp_rank="0"}'] == 0
    assert scraped(stack.decode)['etcd_pd_engine_rank_serving{dp_rank="0"}'] == 1


def test_the_router_s_request_id_is_in_the_log_of_both_legs(stack: Stack) -> None:
    room, id = stack.room(), f"req-{stack.room()}"
    body = {**stack.prefill.address, "bootstrap_room": room}
    body |= {"text": "who asks", "sampling_params": {"max_new_tokens": 2}}

    async def run(id: str) -> None:
        async with aiohttp.ClientSession(headers={"X-Request-ID": id}) as session:
            await asyncio.gather(*(post(session, instance, body) for instance in (stack.prefill, stack.decode)))

    asyncio.run(run(id))
    for instance, steps in (
        (stack.prefill, ("accepted", "computed", "registered", "handed over")),
        (stack.decode, ("accepted", "resolved", "fetched")),
    ):
        lines = [line for line in instance.log.splitlines() if line.endswith(f" request={id}")]
        assert [step for step in steps if any(f" {step} room={room} " in line for line in lines)] == list(steps)
    body["bootstrap_room"] = stack.room()
    asyncio.run(run("two words"))
    assert "two words" not in stack.prefill.log


def test_what_an_instance_says_of_itself(stack: Stack, model_path: str) -> None:
    info = stack.prefill.info()
    assert (info["disaggregation_mode"], info["dp_size"], info["load_balance_method"]) == ("prefill", 2, "round_robin")
    assert (info["model_path"], info["tp_size"], info["compute"]) == (model_path, 1, "real")
    assert {rank["state"] for rank in info["etcd_pd"]["ranks"]} == {"serving"}
    assert len({stack.prefill.process.pid, *stack.prefill.rank_pids()}) == 3
    assert info["etcd_pd"]["fingerprint"] == stack.decode.info()["etcd_pd"]["fingerprint"]

    async def run() -> None:
        async with aiohttp.ClientSession(stack.decode.url) as session:
            for path in ("/health", "/model_info", "/get_model_info", "/get_server_info", "/v1/models", "/get_load"):
                async with session.get(path) as response:
                    assert response.status == 200, path
            async with session.get("/v1/models") as response:
                assert (await response.json())["data"][0]["id"] == Path(model_path).name
            async with session.post("/flush_cache") as response:
                assert response.status == 200
            for method, path, status in (("GET", "/nowhere", 404), ("GET", "/generate", 405)):
                async with session.request(method, path) as response:
                    assert (response.status, (await response.json())["error"]["type"]) == (status, "HTTPError")

    asyncio.run(run())


def test_many_at_once_equal_the_plain_model(stack: Stack, model: Model, tokenizer: Tokenizer) -> None:
    words = ["the", "river", "does", "not", "decide", "where", "to", "go", "and", "a", "good", "name", "saves", "time"]
    draw = random.Random(5)
    bodies: list[dict[str, Any]] = [
        {
            "text": " ".join(draw.choices(words, k=draw.randint(1, 150))),
            "sampling_params": {"max_new_tokens": draw.randint(1, 40), "temperature": 0},
            "stream": number % 3 == 0,
        }
        for number in range(16)
    ]
    ranks = set()
    for body, (prefilled, decoded) in zip(bodies, stack.send_all(*bodies), strict=True):
        assert (prefilled[0], decoded[0]) == (200, 200), (prefilled, decoded)
        if body["stream"]:
            told = events(decoded[1])
            for before, after in zip(told, told[1:], strict=False):
                assert after["text"].startswith(before["text"])
                assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
                assert before["meta_info"]["finish_reason"] is None
            answer, [first] = told[-1], events(prefilled[1])
        else:
            answer, first = json.loads(decoded[1]), json.loads(prefilled[1])
        ids = tokenizer.encode(body["text"])
        expected = generate(model, ids, Sampling(max_new_tokens=body["sampling_params"]["max_new_tokens"]), {0})
        assert answer["output_ids"] == expected.token_ids
        stopped = answer["meta_info"]["finish_reason"]["type"] == "stop"
        assert answer["text"] == tokenizer.decode(expected.token_ids[: -1 if stopped else None])
        meta, told_by_prefill = answer["meta_info"], first["meta_info"]
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(ids), len(expected.token_ids))
        assert first["output_ids"] == expected.token_ids[:1]
        assert meta["etcd_pd"]["dp_rank"] == told_by_prefill["dp_rank"]
        assert meta["etcd_pd"]["bootstrap_room"] == told_by_prefill["room"]
        assert meta["etcd_pd"]["lease_id"] == told_by_prefill["lease_id"]
        assert meta["etcd_pd"]["ttft_ms"] > 0
        ranks.add(meta["etcd_pd"]["dp_rank"])
    assert ranks == {0, 1}


def test_a_batch_is_answered_as_a_list(stack: Stack) -> None:
    rooms = [stack.room(), stack.room(), stack.room()]
    prompts = [[1, 2, 3], [400], [500, 600, 700, 800]]
    body = {"input_ids": prompts, "bootstrap_room": rooms, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
    [(prefilled, decoded)] = stack.send_all(body)
    assert (prefilled[0], decoded[0]) == (200, 200)
    answers = json.loads(decoded[1])
    assert [answer["meta_info"]["etcd_pd"]["bootstrap_room"] for answer in answers] == rooms
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [3, 1, 4]
    assert [answer["meta_info"]["room"] for answer in json.loads(prefilled[1])] == rooms
    rooms = [stack.room(), stack.room(), stack.room()]
    [(_, streamed)] = stack.send_all({**body, "bootstrap_room": rooms, "stream": True})
    last = {event["index"]: event["output_ids"] for event in events(streamed[1])}
    assert [last[index] for index in range(3)] == [answer["output_ids"] for answer in answers]


def test_seeds_logprobs_and_stop_texts(stack: Stack) -> None:
    sampled = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 5, "ignore_eos": True}
    body = {"text": "Once upon a time", "sampling_params": sampled, "return_logprob": True}
    answers = [json.loads(decoded[1]) for _, decoded in stack.send_all(body, body, body)]
    assert answers[0]["output_ids"] == answers[1]["output_ids"] == answers[2]["output_ids"]
    logprobs = answers[0]["meta_info"]["output_token_logprobs"]
    assert [token for _, token, _ in logprobs] == answers[0]["output_ids"]
    assert all(value < 0 for value, _, _ in logprobs)
    [(_, greedy)] = stack.send_all({"text": "Once", "sampling_params": {"max_new_tokens": 30}})
    text = json.loads(greedy[1])["text"]
    stop = text[8:11]
    [(_, stopped)] = stack.send_all({"text": "Once", "sampling_params": {"max_new_tokens": 30, "stop": stop}})
    answer = json.loads(stopped[1])
    assert answer["text"] == text[: text.index(stop)]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_completions_and_chat(stack: Stack) -> None:
    [(_, plain)] = stack.send_all({"text": "Hello", "sampling_params": {"max_new_tokens": 5}})
    [(_, completed)] = stack.send_all({"prompt": "Hello", "max_tokens": 5, "temperature": 0}, path="/v1/completions")
    body = json.loads(completed[1])
    assert body["choices"][0]["text"] == json.loads(plain[1])["text"]
    assert body["usage"] == {"prompt_tokens": body["usage"]["prompt_tokens"], "completion_tokens": 5,
                             "total_tokens": body["usage"]["prompt_tokens"] + 5}  # fmt: skip
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}
    [(_, whole)] = stack.send_all(asked, path="/v1/chat/completions")
    message = json.loads(whole[1])["choices"][0]["message"]
    asked = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    [(_, streamed)] = stack.send_all(asked, path="/v1/chat/completions")
    chunks = events(streamed[1])
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1]) == message["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:2]] == ["assistant", None]
    [replies] = stack.send_all({**asked, "model": "gpt-4o"}, path="/v1/chat/completions")
    assert [status for status, _ in replies] == [404, 404]
    assert all(json.loads(text)["error"]["code"] == "model_not_found" for _, text in replies)


def test_both_sides_refuse_at_once_when_input_is_bad(stack: Stack) -> None:
    started = time.monotonic()
    answers = stack.send_all(
        {"text": "x", "bootstrap_room": -1},
        {"text": ""},
        {"input_ids": [5] * 40_000},
        {"text": "x", "sampling_params": {"max_new_tokens": -1}},
        {"text": "x", "bootstrap_port": 1, "bootstrap_host": "a b"},
    )
    for prefilled, decoded in answers:
        assert prefilled[0] == decoded[0] == 400
        error = json.loads(decoded[1])["error"]
        assert error["field"] and error["rule"]
    [(elsewhere, _)] = stack.send_all({"text": "x", "bootstrap_port": 1, "routed_dp_rank": -1})
    assert elsewhere[0] == 400
    assert time.monotonic() - started < 10


def test_other_protocols_leave_no_traceback(stack: Stack) -> None:
    http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
    for data in (http2, b"\x16\x03\x01garbage\r\n\r\n", b"GET /\0 HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", stack.decode.port), timeout=5) as peer:
            peer.sendall(data)
            assert peer.recv(100).startswith(b"HTTP/1.")
    assert "Traceback" not in stack.decode.log


def test_health_is_answered_soon_beside_huge_prompts_and_silent_connections(stack: Stack) -> None:
    seconds, statuses = asyncio.run(measure("127.0.0.1", stack.decode.port))
    print(report(seconds))
    assert set(statuses) == {400}
    assert max(seconds) < 1.0, "ten times what is promised"


def test_clients_that_go_leave_nothing(stack: Stack) -> None:
    room = stack.room()
    body = {
        "text": "x",
        **stack.prefill.address,
        "bootstrap_room": room,
        "sampling_params": {"max_new_tokens": 30_000, "ignore_eos": True},
    }

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            waiting = asyncio.create_task(post(session, stack.prefill, {**body, "bootstrap_room": room + 1}))
            decoding = asyncio.create_task(post(session, stack.decode, body))
            assert (await post(session, stack.prefill, body))[0] == 200
            await asyncio.sleep(0.2)
            for task in (waiting, decoding):
                assert not task.done()
                task.cancel()
            await asyncio.gather(waiting, decoding, return_exceptions=True)

    asyncio.run(run())

    def idle() -> bool:
        async def loads() -> list[Any]:
            async with aiohttp.ClientSession() as session:
                found = []
                for instance in (stack.prefill, stack.decode):
                    async with session.get(f"{instance.url}/get_load") as response:
                        found += await response.json()
                return found

        return all(load["num_reqs"] == load["num_tokens"] == 0 for load in asyncio.run(loads()))

    wait_until(idle, "nothing in flight")
    wait_until(lambda: f"failed room={room} type=Aborted" in stack.decode.log, "decode's rank to give it up")
    wait_until(lambda: f"failed room={room + 1} type=Aborted" in stack.prefill.log, "prefill's rank to give it up")


def test_a_port_in_use_starts_nothing(stack: Stack, tmp_path: Path) -> None:
    second = InstanceProcess("decode", tmp_path, port=stack.decode.port, model_path=stack.decode.settings["model_path"])
    second.start()
    assert second.process.wait(30) == 1
    assert f"port: cannot listen on 127.0.0.1:{stack.decode.port}: Address already in use" in second.log
    assert list(second.temporary.iterdir()) == []


def test_a_name_in_use_ends_the_instance(stack: Stack, model_path: str) -> None:
    settings = {"instance": stack.prefill.settings["instance"], "model_path": model_path}
    second = InstanceProcess("prefill", stack.prefill.directory, **settings)
    second.start()
    assert second.process.wait(60) == 1
    assert "belongs to another launch" in second.log
    assert list(second.temporary.iterdir()) == []
    assert stack.prefill.info()["etcd_pd"]["ranks"][0]["state"] == "serving"


def test_a_dead_rank_fails_its_own_requests_alone(stack: Stack, tmp_path: Path, model_path: str) -> None:
    """Also: what a stopping instance does with a stream, and how emulated answers are marked."""
    emulated = {"model_path": model_path, "compute": "emulated", "emulated_decode_steps_per_second": 20.0}
    with (
        InstanceProcess("prefill", tmp_path, dp_size=2, decode_arrival_seconds=30.0, **emulated) as prefill,
        InstanceProcess("decode", tmp_path, drain_timeout_seconds=0.2, **emulated) as decode,
    ):
        asyncio.run(kill_and_stop(prefill, decode))
    # the stand-in does not clean up behind the dead
    assert [path.name.rpartition("-")[2] for path in (tmp_path / "registry").glob("room-*")] == ["3"]


async def kill_and_stop(prefill: InstanceProcess, decode: InstanceProcess) -> None:
    routed = {"text": "hello", **prefill.address}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        bodies = [{**routed, "bootstrap_room": room, "routed_dp_rank": room % 2} for room in (2, 3)]
        held = [asyncio.create_task(post(session, prefill, body)) for body in bodies]
        await asyncio.sleep(0.5)
        victim = prefill.info()["etcd_pd"]["ranks"][1]["pid"]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        status, text = await held[1]
        assert (status, json.loads(text)["error"]["type"]) == (500, "RankDied")
        assert time.monotonic() - killed < 5
        status, text = await post(session, decode, bodies[1])
        assert (status, json.loads(text)["error"]["type"]) == (500, "PrefillLost")
        assert (await post(session, prefill, {**bodies[1], "bootstrap_room": 5}))[0] == 503
        status, text = await post(session, decode, {**bodies[0], "sampling_params": {"max_new_tokens": 3}})
        assert (status, json.loads(text)["meta_info"]["compute"]) == (200, "emulated")
        assert (await held[0])[0] == 200
        for room in range(10, 14):
            body = {**routed, "bootstrap_room": room, "sampling_params": {"max_new_tokens": 1}}
            (status, text), _ = await asyncio.gather(post(session, prefill, body), post(session, decode, body))
            assert (status, json.loads(text)["meta_info"]["dp_rank"]) == (200, 0)
        body = {**routed, "bootstrap_room": 20, "stream": True, "sampling_params": {"max_new_tokens": 5000}}
        stream = asyncio.create_task(post(session, decode, body))
        assert (await post(session, prefill, body))[0] == 200
        await asyncio.sleep(0.3)
        decode.process.send_signal(signal.SIGTERM)
        # a stream that cannot be finished breaks off: a proper end would count as a success
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream
    assert decode.process.wait(20) == 0


def test_ranks_end_with_a_front_that_is_killed(tmp_path: Path, model_path: str) -> None:
    """Idle ones, and one that is busy for hours."""
    emulated = {"model_path": model_path, "compute": "emulated"}
    with (
        InstanceProcess("prefill", tmp_path, dp_size=2, **emulated) as prefill,
        InstanceProcess("decode", tmp_path, **emulated) as decode,
    ):
        pids = [*prefill.rank_pids(), *decode.rank_pids()]
        asyncio.run(kill_while_busy(prefill, decode))
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the ranks to end", timeout=30)
        for instance in (prefill, decode):
            assert list(instance.temporary.glob("etcd-pd-*")) == []


async def kill_while_busy(prefill: InstanceProcess, decode: InstanceProcess) -> None:
    body = {"text": "hello", **prefill.address, "bootstrap_room": 1, "stream": True}
    body["sampling_params"] = {"max_new_tokens": 1_000_000}
    async with aiohttp.ClientSession() as session:
        prefilling = asyncio.create_task(post(session, prefill, body))
        async with session.post(f"{decode.url}/generate", json=body) as response:
            assert (response.status, (await prefilling)[0]) == (200, 200)
            for instance in (prefill, decode):
                instance.stop(signal.SIGKILL)


def test_an_engine_ends_when_it_is_stopped_while_starting(tmp_path: Path, model_path: str) -> None:
    for seconds in (0.3, 3.0):
        instance = InstanceProcess("prefill", tmp_path, dp_size=2, model_path=model_path)
        instance.start()
        time.sleep(seconds)
        assert instance.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert list(instance.temporary.iterdir()) == []


def test_ranks_in_lock_step_go_on_when_one_of_them_dies(tmp_path: Path, model_path: str) -> None:
    emulated = {"model_path": model_path, "compute": "emulated", "policy": "shortest_wait", "threads": 1}
    lock_step = {"emulated_lock_step": True, "emulated_shared_tokens_per_second": 100_000.0}
    with (
        InstanceProcess("prefill", tmp_path, dp_size=3, **emulated, **lock_step) as prefill,
        InstanceProcess("decode", tmp_path, **{**emulated, "policy": "round_robin"}) as decode,
    ):
        stack = Stack(prefill, decode)
        bodies = [
            {"input_ids": [5] * tokens, "sampling_params": {"max_new_tokens": 2}} for tokens in (400, 30, 500, 200, 60)
        ]
        assert serve(stack, bodies) <= {0, 1, 2}
        os.kill(prefill.rank_pids()[1], signal.SIGKILL)
        wait_until(lambda: [r["state"] for r in prefill.info()["etcd_pd"]["ranks"]][1] == "dead", "the rank's death")
        assert serve(stack, bodies) <= {0, 2}


def serve(stack: Stack, bodies: list[dict[str, Any]]) -> set[int]:
    """The ranks that served them all, with emulated compute."""
    answers = [(status, json.loads(text)) for both in stack.send_all(*bodies) for status, text in both]
    assert {(status, answer["meta_info"]["compute"]) for status, answer in answers} == {(200, "emulated")}
    return {answer["meta_info"]["etcd_pd"]["dp_rank"] for _, answer in answers if "etcd_pd" in answer["meta_info"]}
