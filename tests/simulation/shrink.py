"""Makes a failing world smaller: faults without which it still breaks the rule are left out, one after the other."""

from __future__ import annotations

from dataclasses import replace

from .plan import Plan
from .rules import Rule
from .world import History, simulate


def shrink(plan: Plan, rule: Rule) -> tuple[Plan, History]:
    """A plan of fewer faults whose world breaks the same rule, and its history."""
    history = simulate(plan)
    for fault in plan.faults:
        smaller = replace(plan, faults=tuple(kept for kept in plan.faults if kept is not fault))
        found = simulate(smaller)
        if any(rule(found)):
            plan, history = smaller, found
    return plan, history


def tell(plan: Plan, rule: Rule) -> str:
    """The shrunk world in words: what was done to it, what broke, and what happened to the first room concerned."""
    plan, history = shrink(plan, rule)
    broken = list(rule(history))
    lines = [f"seed {plan.seed}, {plan.ranks} ranks of {plan.tp}, {len(broken)} times: {broken[0]}"]
    lines += [f"  {at:7.3f} {kind} ({agent}, {luck:.3f})" for at, kind, agent, luck in plan.faults]
    room = next((int(word) for word in broken[0].split() if word.isdigit() and len(word) > 6), None)
    began = history.events[0].t
    for event in history.events:
        if event.what == "fault" or (room is not None and event.data.get("room") == room):
            data = {name: value for name, value in event.data.items() if name not in ("instance", "room")}
            lines.append(f"  {event.t - began:7.3f} {event.who:<8} {event.what:<10} {data}")
    return "\n".join(lines)
