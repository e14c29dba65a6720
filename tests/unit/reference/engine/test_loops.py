"""A prefill and a decode rank's loop face to face in one process: real model, real transfer, a stand-in registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from msgspec.structs import replace
from zmq.utils.garbage import gc

from etcd_pd import RankEnded, RegistrationTimeout, Rejected
from etcd_pd.reference.engine.card import ModelCard, read_card
from etcd_pd.reference.engine.decode import DecodeLoop
from etcd_pd.reference.engine.errors import RequestFailed
from etcd_pd.reference.engine.link import Link, RankSpec
from etcd_pd.reference.engine.messages import Announced, Began, Bring, Fatal, Pass, Sampling, ToFront, Update, Work
from etcd_pd.reference.engine.model import Model
from etcd_pd.reference.engine.prefill import PrefillLoop
from etcd_pd.reference.engine.reference import generate
from etcd_pd.reference.engine.settings import DecodeSettings, PrefillSettings
from etcd_pd.reference.engine.spans import Spans
from etcd_pd.reference.engine.transfer import KVClient, KVServer
from tests.support.waiting import wait_until
from tests.unit.reference.engine.registry_fake import LEASE_ID, FakeClient

INSTANCE = "127.0.0.1:8998"


class Said:
    """In place of a rank's line to the front."""

    def __init__(self) -> None:
        self.updates: dict[int, list[Update]] = {}
        self.failures: dict[int, RequestFailed] = {}
        self.others: list[ToFront] = []

    def send(self, message: ToFront) -> None:
        """Keep it."""
        if isinstance(message, Update):
            self.updates.setdefault(message.id, []).append(message)
        else:
            self.others.append(message)

    def fail(self, id: int, error: RequestFailed) -> None:
        """Keep it."""
        assert id not in self.failures
        self.failures[id] = error

    def ended(self, id: int) -> bool:
        """Whether the request has its result, or will have none."""
        return id in self.failures or any(update.finish_reason for update in self.updates.get(id, []))

    def tokens(self, id: int) -> list[int]:
        """What was generated."""
        return [token for update in self.updates.get(id, []) for token in update.token_ids]

    def meta(self, id: int) -> dict[str, Any]:
        """What was said of the request."""
        return {name: value for update in self.updates.get(id, []) for name, value in update.meta.items()}


@dataclass
class Bench:
    """Makes loops, and turns all of them."""

    directory: Path
    model: Model
    card: ModelCard
    context: zmq.Context[zmq.Socket[bytes]]
    spans: Spans | None = None
    loops: list[PrefillLoop | DecodeLoop] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def prefill(
        self, dp_rank: int = 0, launch: str = "launch", card: ModelCard | None = None, **settings: Any
    ) -> tuple[PrefillLoop, Said]:
        """A prefill rank of an instance with two."""
        made = PrefillSettings(**{"instance": "p", "dp_size": 2, **settings})
        said, client = Said(), cast(Any, FakeClient(self.directory))
        server = KVServer(self.context, "127.0.0.1")
        link = cast(Link, said)
        loop = PrefillLoop(
            self._spec(made, dp_rank, launch), made, card or self.card, self.model, client, server, link, self.spans
        )
        self.loops.append(loop)
        return loop, said

    def decode(self, card: ModelCard | None = None, **settings: Any) -> tuple[DecodeLoop, Said]:
        """A decode rank."""
        made = DecodeSettings(instance="d", **settings)
        said, client = Said(), cast(Any, FakeClient(self.directory))
        link = cast(Link, said)
        spec = self._spec(made, 0, "launch")
        loop = DecodeLoop(spec, made, card or self.card, self.model, client, KVClient(self.context), link, self.spans)
        self.loops.append(loop)
        return loop, said

    def work(self, room: int, tokens: int = 20, **more: Any) -> Work:
        """A request."""
        sampling = more.pop("sampling", Sampling(max_new_tokens=6, ignore_eos=True))
        ids = [(room * 37 + position * 11) % 1024 for position in range(tokens)]
        more = {"instance": INSTANCE, **more}
        return Work(id=next(self.ids), room=room, input_ids=ids, sampling=sampling, **more)

    def turn(self) -> None:
        """One turn of each loop."""
        for loop in self.loops:
            loop.turn()

    def until(self, condition: Callable[[], object], what: str = "the loops to get there") -> None:
        """Turn until the condition holds."""

        def met() -> bool:
            self.turn()
            return bool(condition())

        wait_until(met, what, every=0.001)

    def key(self, room: int) -> Path:
        """The room's key in the stand-in registry."""
        return self.directory / f"room-p-{room}"

    def _spec(self, settings: PrefillSettings | DecodeSettings, dp_rank: int, launch: str) -> RankSpec:
        return RankSpec(settings, dp_rank, "", launch, self.card.path, cast(Any, None), 0, None)


@pytest.fixture
def bench(tmp_path: Path, model: Model, model_path: str) -> Iterator[Bench]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Bench(tmp_path, model, read_card(model_path, PrefillSettings()), context)
    yield made
    for loop in made.loops:
        loop.close()
    context.destroy(linger=0)
    gc.stop()


def test_requests_travel_and_come_out_as_without_disaggregation(bench: Bench) -> None:
    first, first_said = bench.prefill(0, chunk_tokens=7)
    second, second_said = bench.prefill(1)
    decode, said = bench.decode(max_batch=3)
    works = [bench.work(room, tokens=5 + 13 * room, sampling=Sampling(max_new_tokens=9)) for room in range(8)]
    for number, work in enumerate(works):
        (first if number % 2 else second).accept(work)
        decode.accept(work)
    prefilled = {**dict.fromkeys([w.id for w in works[1::2]], first_said)}
    bench.until(lambda: all(said.ended(w.id) and prefilled.get(w.id, second_said).ended(w.id) for w in works))
    for number, work in enumerate(works):
        assert said.tokens(work.id) == generate(bench.model, work.input_ids, work.sampling, {0}).token_ids
        meta = said.meta(work.id)
        assert (meta["bootstrap_room"], meta["dp_rank"]) == (work.room, 0 if number % 2 else 1)
        assert (meta["instance"], meta["lease_id"], meta["source"]) == ("p", LEASE_ID, "registry")
        assert 0 <= meta["register_to_resolved_ms"] < 10_000
        told = prefilled.get(work.id, second_said).meta(work.id)
        assert (told["room"], told["dp_rank"], told["lease_id"]) == (work.room, meta["dp_rank"], LEASE_ID)
        assert told["token"] == meta["revision"]
        assert not bench.key(work.room).exists()
    assert not first.turn() and not decode.turn()


def test_in_lock_step_a_rank_computes_when_its_pass_ends(bench: Bench) -> None:
    loop, said = bench.prefill(1, compute="emulated", emulated_lock_step=True, emulated_pass_tokens=50)
    decode, answers = bench.decode()
    works = [bench.work(room, tokens=20) for room in range(4)]
    bench.turn()
    for work in works:
        loop.accept(work)
        decode.accept(work)
    bench.turn()
    assert [message for message in said.others if isinstance(message, Bring)] == [
        Bring(number=0, tokens=0),
        Bring(number=0, tokens=40),
    ]
    loop.begin(Pass(number=0, tokens=(0, 40), seconds=0.0))
    assert [message for message in said.others if isinstance(message, Began)] == [Began(work.id) for work in works[:2]]
    loop.abort(works[1].id, "the client has gone")
    bench.until(lambda: answers.ended(works[0].id) and said.ended(works[0].id))
    assert said.failures.keys() == {works[1].id}
    assert said.others[-1] == Bring(number=1, tokens=40)
    loop.begin(Pass(number=1, tokens=(0, 20), seconds=0.0))  # the last prompt came too late for it
    bench.until(lambda: answers.ended(works[2].id))
    assert said.others[-1] == Bring(number=2, tokens=20)
    assert not answers.ended(works[3].id)


def test_a_room_is_registered_before_anything_is_computed(bench: Bench) -> None:
    loop, said = bench.prefill()
    loop.accept(bench.work(5, tokens=2000))
    assert bench.key(5).exists()
    assert said.updates == {}


@pytest.mark.parametrize("settings", [{"dp_size": 1}, {"policy": "follow_bootstrap_room"}])
def test_where_the_rank_follows_from_the_request_etcd_is_not_needed(bench: Bench, settings: dict[str, Any]) -> None:
    prefill, prefill_said = bench.prefill(**settings)
    decode, said = bench.decode()
    work = bench.work(4)
    decode.accept(work)
    # decode asks before the request has come to prefill, which must not matter
    bench.until(lambda: prefill._early_asks)
    prefill.accept(work)
    assert not bench.key(4).exists()
    bench.until(lambda: said.ended(work.id) and prefill_said.ended(work.id))
    assert said.tokens(work.id) == generate(bench.model, work.input_ids, work.sampling).token_ids
    assert said.meta(work.id)["lease_id"] == 0
    assert said.meta(work.id)["register_to_resolved_ms"] is None


def test_a_rank_that_the_request_names_needs_no_key_either(bench: Bench) -> None:
    prefill, prefill_said = bench.prefill(1)
    decode, said = bench.decode()
    work = bench.work(4, prefill_dp_rank=1, routed_dp_rank=1)
    prefill.accept(work)
    decode.accept(work)
    bench.until(lambda: said.ended(work.id) and prefill_said.ended(work.id))
    assert said.meta(work.id)["source"] == "named"


def test_a_seed_decides_across_both_sides_and_none_is_drawn_by_prefill(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode()
    seeded = Sampling(max_new_tokens=12, temperature=1.0, seed=11, ignore_eos=True)
    ids = bench.work(1).input_ids
    works = []
    for room in (1, 2, 3):
        sampling = seeded if room < 3 else replace_seed(seeded)
        works.append(Work(id=room, room=room, instance=INSTANCE, input_ids=ids, sampling=sampling))
        prefill.accept(works[-1])
        decode.accept(works[-1])
    bench.until(lambda: all(said.ended(work.id) for work in works))
    assert said.tokens(1) == said.tokens(2) == generate(bench.model, ids, seeded).token_ids
    assert said.tokens(3) != said.tokens(1)


def replace_seed(sampling: Sampling) -> Sampling:
    return Sampling(max_new_tokens=sampling.max_new_tokens, temperature=1.0, ignore_eos=True)


def test_a_room_in_flight_is_not_taken_twice(bench: Bench) -> None:
    prefill, prefill_said = bench.prefill()
    other, other_said = bench.prefill(1)
    decode, said = bench.decode()
    works = [bench.work(9) for _ in range(3)]
    prefill.accept(works[0])
    prefill.accept(works[1])
    other.accept(works[2])
    assert prefill_said.failures[works[1].id].status == 409
    bench.until(lambda: works[2].id in other_said.failures)
    assert other_said.failures[works[2].id].type == "RoomConflict"
    decode.accept(works[0])
    decode.accept(works[1])
    assert said.failures[works[1].id].status == 409
    bench.until(lambda: said.ended(works[0].id) and prefill_said.ended(works[0].id))


def test_two_decodes_do_not_get_one_room(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode()
    second, second_said = bench.decode()
    work = bench.work(9, tokens=3000)
    prefill.accept(work)
    decode.accept(work)
    decode.turn()
    bench.until(lambda: prefill._tasks[9].asker)
    second.accept(work)
    bench.until(lambda: second_said.ended(work.id))
    assert second_said.failures[work.id].type == "RoomConflict"
    bench.until(lambda: said.ended(work.id))
    assert said.tokens(work.id)


def test_decode_is_notified_when_prefill_s_client_goes(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode()
    waiting, asked = bench.work(1), bench.work(2, tokens=3000)
    for work in (asked, waiting):
        prefill.accept(work)
        decode.accept(work)
    decode.turn()
    bench.until(lambda: prefill._tasks[2].asker)
    for work in (waiting, asked):
        prefill.abort(work.id, "the client has gone")
    bench.until(lambda: said.ended(waiting.id) and said.ended(asked.id))
    assert "the client has gone" in str(said.failures[asked.id])
    assert prefill._held_tokens == 0 and not prefill._tasks and len(prefill._queue) == 0
    assert not prefill.turn()


def test_prefill_is_notified_when_decode_s_client_goes(bench: Bench) -> None:
    prefill, prefill_said = bench.prefill()
    decode, said = bench.decode()
    work = bench.work(1, tokens=3000)
    prefill.accept(work)
    decode.accept(work)
    bench.until(lambda: prefill._tasks[1].asker)
    decode.abort(work.id, "the client has gone")
    bench.until(lambda: prefill_said.ended(work.id))
    assert prefill_said.failures[work.id].type == "DecodeCancelled"
    assert not decode._tasks and decode._fetching == 0


def test_a_running_request_that_is_given_up_leaves_the_batch(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode()
    works = [bench.work(room, sampling=Sampling(max_new_tokens=500, ignore_eos=True)) for room in (1, 2)]
    for work in works:
        prefill.accept(work)
        decode.accept(work)
    bench.until(lambda: len(decode._running) == 2)
    decode.abort(works[0].id, "the client has gone")
    assert len(decode._running) == 1
    decode.abort(works[0].id, "again")
    decode.abort(works[1].id, "the client has gone")
    assert not decode.turn()


def test_what_decode_never_asks_for_expires(bench: Bench) -> None:
    prefill, said = bench.prefill(bootstrap_timeout_seconds=1)
    work = bench.work(1)
    prefill.accept(work)
    bench.until(lambda: said.ended(work.id))
    assert (said.failures[work.id].status, said.failures[work.id].type) == (504, "BootstrapTimeout")
    assert "failed" in bench.key(1).read_text()
    assert prefill._held_tokens == 0


def test_a_rank_that_holds_too_much_pauses(bench: Bench) -> None:
    prefill, prefill_said = bench.prefill(max_held_tokens=30)
    decode, said = bench.decode()
    works = [bench.work(room) for room in range(4)]
    for work in works:
        prefill.accept(work)
    bench.until(lambda: not prefill.turn())
    assert len(prefill._queue) == 2
    for work in works:
        decode.accept(work)
    bench.until(lambda: all(prefill_said.ended(work.id) and said.ended(work.id) for work in works))
    assert not prefill_said.failures


def test_decode_s_own_deadlines(bench: Bench) -> None:
    decode, said = bench.decode(kv_timeout_seconds=0.3, request_timeout_seconds=0.6)
    prefill, prefill_said = bench.prefill(dp_size=1)
    alone = bench.work(1)
    decode.accept(alone)
    bench.until(lambda: said.ended(alone.id))
    assert said.failures[alone.id].status == 504
    long = bench.work(2, sampling=Sampling(max_new_tokens=30_000, ignore_eos=True))
    prefill.accept(long)
    decode.accept(long)
    bench.until(lambda: said.ended(long.id))
    assert said.failures[long.id].type == "RequestTimeout"
    assert said.tokens(long.id)
    assert len(decode._running) == 0


def test_a_rank_that_dies_fails_its_rooms_at_once(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode()
    work = bench.work(1, tokens=3000)
    prefill.accept(work)
    decode.accept(work)
    decode.turn()
    assert cast(Any, prefill.registry).prefill.key.exists()
    cast(Any, prefill.registry).prefill.close()
    decode.turn()
    assert said.failures[work.id].type == "PrefillLost"
    assert said.failures[work.id].details["dp_rank"] == 0


def test_another_model_s_cache_is_not_taken(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode(card=replace(bench.card, fingerprint="another"))
    work = bench.work(1)
    prefill.accept(work)
    decode.accept(work)
    bench.until(lambda: said.ended(work.id))
    failed = said.failures[work.id]
    assert (failed.status, failed.type) == (503, "FingerprintMismatch"), "which a router sends to another pair"
    assert failed.details == {"room": 1, "instance": "p"}


def test_another_models_prefill_is_refused_at_once_when_the_batch_has_no_place(bench: Bench) -> None:
    prefill, _ = bench.prefill()
    decode, said = bench.decode(max_batch=1)
    long = bench.work(1, sampling=Sampling(max_new_tokens=30_000, ignore_eos=True))
    prefill.accept(long)
    decode.accept(long)
    bench.until(lambda: said.tokens(long.id))
    others, _ = bench.prefill(card=replace(bench.card, fingerprint="another"), instance="q", bootstrap_port=9000)
    misfit, waiting = bench.work(2, instance="127.0.0.1:9000"), bench.work(3)
    for loop, work in ((others, misfit), (prefill, waiting)):
        loop.accept(work)
        decode.accept(work)
    bench.until(lambda: said.ended(misfit.id))
    assert said.failures[misfit.id].type == "FingerprintMismatch"
    assert not said.ended(long.id) and not said.ended(waiting.id)


def test_a_rank_that_prefill_does_not_have_is_refused_by_decode_too(bench: Bench) -> None:
    decode, said = bench.decode()
    early = bench.work(1, prefill_dp_rank=7)
    decode.accept(early)
    assert not said.failures
    bench.prefill()
    late, following = bench.work(2, routed_dp_rank=2), bench.work(3, routed_dp_rank=1)
    decode.accept(late)
    assert (said.failures[late.id].status, said.failures[late.id].details["field"]) == (400, "routed_dp_rank")
    decode.accept(following)
    assert following.id not in said.failures


def test_a_rejected_registration_ends_the_request(bench: Bench) -> None:
    prefill, said = bench.prefill()
    work = bench.work(1)
    prefill.accept(work)
    fake = cast(Any, prefill.registry).prefill
    fake.events = [Rejected(1, RegistrationTimeout(1, "etcd took no write"))]
    prefill.turn()
    assert (said.failures[work.id].status, said.failures[work.id].type) == (503, "RegistrationTimeout")
    assert not prefill._tasks and not prefill.turn()


def test_a_rank_s_lost_epoch_ends_its_registered_rooms_and_no_others(bench: Bench) -> None:
    prefill, said = bench.prefill()
    works = [bench.work(1), bench.work(2)]
    prefill.accept(works[0])
    prefill.turn()
    prefill.accept(works[1])
    fake = cast(Any, prefill.registry).prefill
    on_its_way = fake.events.pop()
    fake.events.append(RankEnded(fake.epoch, "session lost"))
    prefill.turn()
    assert said.failures[works[0].id].type == "RankLost"
    assert works[1].id not in said.failures
    fake.events.append(on_its_way)
    prefill.turn()
    assert [message for message in said.others if isinstance(message, Announced)][-1].epoch == 0


def test_a_name_that_another_launch_has_is_fatal(bench: Bench) -> None:
    bench.prefill(0, launch="first")
    loop, said = bench.prefill(1, launch="second")
    loop.turn()
    assert [type(message) for message in said.others] == [Fatal]


def test_stopping_fails_what_is_left(bench: Bench) -> None:
    prefill, prefill_said = bench.prefill()
    decode, said = bench.decode()
    work = bench.work(1, tokens=3000)
    prefill.accept(work)
    decode.accept(work)
    prefill.drain()
    prefill.close()
    decode.close()
    assert prefill_said.failures[work.id].type == said.failures[work.id].type == "Stopping"
    bench.loops.clear()
    assert cast(Any, prefill.registry).prefill.key.exists() is False
