"""``make simulate``: worlds for a minute, with seeds that change daily; ``SEEDS=N make simulate`` for a night.

``WORLD=full`` means eight engines at six agents in place of a few at three. A night may be interrupted: it goes on
after the seed that it did last. A world that breaks a rule is made smaller and shown; ``python -m tests.simulation
SEED`` shows one again.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .plan import SIZES, Plan
from .rules import KNOWN, RULES
from .shrink import tell
from .world import simulate

#: How long without SEEDS, seconds.
SECONDS = 60.0
PROGRESS = Path("build") / "simulation"
WORLD = os.environ.get("WORLD", "small")


def main(arguments: list[str]) -> int:
    """Exit status 1 where a rule broke that is not known to."""
    logging.disable(logging.CRITICAL)
    if arguments:
        return 1 if _show(int(arguments[0])) else 0
    night = int(os.environ.get("SEEDS", "0"))
    return _run(_rest(night) if night else itertools.chain(Plan.fixed(), _today()), bool(night))


def _draw(seed: int) -> Plan:
    return Plan.draw(seed, size=SIZES[WORLD])


def _today() -> Iterator[Plan]:
    return map(_draw, itertools.count(datetime.date.today().toordinal() * 1_000_000))


def _rest(count: int) -> Iterator[Plan]:
    """The worlds of a night that are not done yet."""
    done = PROGRESS / f"{WORLD}-{count}"
    first = int(done.read_text()) + 1 if done.exists() else 0
    print(f"simulate: seeds {first} to {count - 1}")
    return map(_draw, range(first, count))


def _run(plans: Iterable[Plan], night: bool) -> int:
    began, cpu = time.monotonic(), time.process_time()
    worlds = steps = faults = 0
    broken: Counter[str] = Counter()
    gc.disable()  # a world is small, and it makes garbage fast: the collector looks between two
    for plan in plans:
        gc.collect()
        if not night and time.monotonic() - began > SECONDS:
            break
        history = simulate(plan)
        worlds, steps, faults = worlds + 1, steps + history.steps, faults + len(plan.faults)
        for name, rule in RULES.items():
            if any(rule(history)):
                broken[name] += 1
                if name not in KNOWN:
                    how = tell(plan, rule) if broken[name] == 1 else f"seed {plan.seed}, too"
                    print(f"{name} is broken: {how}", flush=True)
        if night:
            PROGRESS.mkdir(parents=True, exist_ok=True)
            (PROGRESS / f"{WORLD}-{os.environ['SEEDS']}").write_text(str(plan.seed))
    spent = time.process_time() - cpu
    print(
        f"simulate: {worlds} {WORLD} worlds, {faults} faults, {steps} packets and store halves in {spent:.0f} s CPU: ",
        end="",
    )
    print(f"{steps / spent:.0f} a second, {faults / spent * 3600:.0f} faults an hour")
    for name in KNOWN:
        print(f"simulate: {name}, known to be broken ({KNOWN[name]}): in {broken[name]} worlds")
    return 1 if broken.keys() - KNOWN.keys() else 0


def _show(seed: int) -> bool:
    plan = _draw(seed)
    history = simulate(plan)
    found = [name for name, rule in RULES.items() if any(rule(history))]
    for name in found:
        print(f"{name}: {tell(plan, RULES[name])}")
    print(
        f"seed {seed}: {len(plan.faults)} faults, {len(history.events)} events, broken: {', '.join(found) or 'nothing'}"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
