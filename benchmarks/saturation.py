"""How many rooms a second are acknowledged, and what each costs then."""

from __future__ import annotations

from .harness import Row, spread
from .rig import FLOOR, OURS, SGLANG_1MS, SGLANG_SESSION, Case, rig, settle
from .rounds import Plan, Run, cpu, interleaved

#: Rooms of one run: about as many seconds of each system.
OUR_ROOMS, SGLANG_ROOMS = 60_000, 2_500
#: Registrations in flight.
WINDOW = 4000
#: What an engine of SGLang's waits for at a time, by its own rate.
SGLANG_WINDOW = 64

#: Name of a row; the case; whether a decode engine wants each room; whether each is released; prefill agents.
Key = tuple[str, Case, bool, bool, int]
WATCHED = "etcd_pd, one watching agent"
TWO_AGENTS = "etcd_pd, two prefill agents"
SGLANG_ALONE = "SGLang, nobody polls"
FLOOR_WATCHED = "raw etcd, one watch"
FULL: tuple[Key, ...] = (
    (WATCHED, OURS, False, False, 1),
    (TWO_AGENTS, OURS, False, False, 2),
    ("etcd_pd, every room wanted", OURS, True, False, 1),
    ("etcd_pd, every room released", OURS, False, True, 1),
    (SGLANG_ALONE, SGLANG_1MS, False, False, 1),
    (SGLANG_1MS.name, SGLANG_1MS, True, False, 1),
    (SGLANG_SESSION.name, SGLANG_SESSION, True, False, 1),
    (FLOOR_WATCHED, FLOOR, True, False, 1),
)
QUICK = tuple(key for key in FULL if key[0] in (WATCHED, TWO_AGENTS, SGLANG_1MS.name, FLOOR_WATCHED))


def measure(plan: Plan) -> list[Row]:
    """Rows of ``saturation.json``."""
    # every agent of a cell watches all of it, so two prefill agents live in a cell of their own
    with rig(["etcd_pd", "sglang", "floor"]) as one, rig(["etcd_pd"], prefill_agents=2) as two:

        def run(key: Key) -> Run:
            _, case, wanted, release, agents = key
            rooms = SGLANG_ROOMS if case.system == "sglang" else OUR_ROOMS
            rooms //= 4 if plan.quick else 1
            window = SGLANG_WINDOW if case.system == "sglang" else WINDOW
            systems = one if agents == 1 else two
            found = systems.flat_out(case, rooms, window, wanted=wanted, release=release)
            settle()
            return found

        runs = interleaved(QUICK if plan.quick else FULL, plan, run, "saturation")
    return [_row(key[0], found) for key, found in runs.items()]


def _row(name: str, runs: list[Run]) -> Row:
    rates = [round(run["rooms_per_second"]) for run in runs]
    return {
        "case": name,
        "rounds": len(runs),
        "rooms": sum(run["rooms"] for run in runs),
        "rooms_per_second": spread(rates, 0),
        "rooms_per_second_by_round": rates,
        **cpu(runs),
    }
