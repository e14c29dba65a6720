"""Passes start when every rank has brought, last as stated, and end on all ranks together: with a clock by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import given, strategies as st

from etcd_pd.reference.engine.emulated import EmulatedModel
from etcd_pd.reference.engine.lock_step import LockStep, PassCost, Passes, pass_size
from etcd_pd.reference.engine.messages import Bring, Pass, Sampling, Work
from etcd_pd.reference.engine.prompt_queue import WHOLE_PROMPTS, PromptQueue

COST = PassCost(longest=0.5, shared=0.25)


@dataclass
class Ranks:
    """Ranks and their front without anything between them; passes take the clock's time."""

    dp_size: int = 2
    most_tokens: int = 8
    now: float = 100.0
    log: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = EmulatedModel(math.inf, 1.0, vocabulary=100)
        self.queues = [PromptQueue(model, WHOLE_PROMPTS) for _ in range(self.dp_size)]
        self.passes = [
            Passes(queue, rank, self.most_tokens, clock=lambda: self.now) for rank, queue in enumerate(self.queues)
        ]
        self.front = LockStep(self.dp_size, COST)
        self.started: list[Pass] = []

    def add(self, dp_rank: int, id: int, tokens: int) -> None:
        """A prompt comes to a rank."""
        self.queues[dp_rank].add(
            Work(id=id, room=id, instance="h:1", input_ids=[1] * tokens, sampling=Sampling(seed=1))
        )
        self.turn()

    def turn(self) -> None:
        """One turn of each rank; what they bring reaches the front, and a pass the ranks."""
        for dp_rank, passes in enumerate(self.passes):
            self.log += [(self.now, work.id) for work, _ in passes.end()]
            bring = passes.bring(pause=False)
            if bring is not None:
                self.start(self.front.bring(dp_rank, bring))

    def start(self, started: Pass | None) -> None:
        """Tell every rank."""
        if started is not None:
            self.started.append(started)
            for passes in self.passes:
                passes.begin(started)

    def run(self) -> None:
        """Let the clock jump to the end of each pass until nothing waits."""
        while (ends := self.passes[0].ends) < math.inf:
            assert {passes.ends for passes in self.passes} == {ends}
            self.now = ends
            self.turn()
            self.turn()


def test_a_pass_lasts_as_long_as_the_longest_rank_and_what_all_share() -> None:
    assert COST.seconds((4, 2, 0)) == 0.5 * 4 + 0.25 * 6
    assert PassCost(longest=1.0).seconds((3, 3)) == 3.0


@given(lengths=st.lists(st.integers(1, 50), max_size=20), most=st.integers(1, 100))
def test_a_pass_takes_the_oldest_prompts_below_its_limit(lengths: list[int], most: int) -> None:
    count = pass_size(lengths, most)
    assert count >= bool(lengths)
    assert count <= 1 or sum(lengths[:count]) < most
    assert count == len(lengths) or sum(lengths[: count + 1]) >= most


def test_by_hand() -> None:
    made = Ranks()
    made.turn()
    assert made.started == []  # nobody has anything
    made.add(0, id=1, tokens=4)  # starts at once and alone: 4 * 0.5 + 4 * 0.25 = 3 s
    made.now += 1
    made.add(1, id=2, tokens=2)  # the idle rank waits for the others
    made.add(0, id=3, tokens=6)
    made.add(0, id=4, tokens=1)
    made.add(0, id=5, tokens=1)  # not below 8 tokens any more
    made.run()
    assert [(one.tokens, one.seconds) for one in made.started] == [
        ((4, 0), 3.0),
        ((7, 2), 0.5 * 7 + 0.25 * 9),
        ((1, 0), 0.75),
    ]
    second = 103.0 + 5.75
    assert made.log == [(103.0, 1), (second, 3), (second, 4), (second, 2), (second + 0.75, 5)]


def test_what_crosses_the_start_of_a_pass_waits_for_the_next() -> None:
    front = LockStep(2, COST)
    assert front.bring(0, Bring(number=0, tokens=5)) is None
    started = front.bring(1, Bring(number=0, tokens=0))
    assert started is not None and started.tokens == (5, 0)
    assert front.bring(0, Bring(number=0, tokens=9)) is None
    assert front.bring(1, Bring(number=1, tokens=3)) is None
    again = front.bring(0, Bring(number=1, tokens=9))
    assert again is not None and (again.number, again.tokens) == (1, (9, 3))


def test_nobody_waits_for_the_dead() -> None:
    front = LockStep(3, COST)
    front.bring(0, Bring(number=0, tokens=5))
    assert front.lose(1) is None
    started = front.lose(2)
    assert started is not None and started.tokens == (5, 0, 0)
    assert front.bring(2, Bring(number=1, tokens=1)) is None
    assert front.lose(0) is None
