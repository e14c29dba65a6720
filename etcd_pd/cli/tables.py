"""Tables of what :mod:`etcd_pd.cli.views` read."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .console import plain_table
from .printable import printable
from .verdict import WRONG, describe_counts

#: Most problems that are shown, and most names of who left.
MOST_LINES = 20


def room_table(found: dict[str, Any]) -> RenderableType:
    """One row a room."""
    title = f"{len(found['rooms'])} rooms in {found['root']} at revision {found['revision']}"
    table = plain_table(title, "instance", "room:", "dp_rank:", "epoch:", "state", "lease:", "time left:")
    for room in found["rooms"]:
        left = _time_left(room["seconds_left"])
        numbers = (str(room["room"]), str(room["dp_rank"]), str(room["epoch"]))
        table.add_row(room["instance"], *numbers, _state(room), room["lease"], left)
    return table


def _time_left(seconds: int | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds} s" if seconds else "expired"


def _state(room: dict[str, Any]) -> str:
    return f"{room['state']}: {room['reason']}" if room["reason"] else str(room["state"])


def room_life(found: dict[str, Any]) -> RenderableType:
    """What became of one room, a line for each step."""
    if not found["lives"]:
        gone = "released, ended with its lease, or never registered"
        watch = f"etcd-pd watch --room {found['room']} shows what happens to it next"
        return f"room {found['room']} has no key in {found['root']}: {gone}; {watch}"
    return Group(*(_life(life) for life in found["lives"]))


def _life(life: dict[str, Any]) -> RenderableType:
    table = plain_table(f"room {life['room']} of {life['instance']}", "what", "value")
    table.add_row("state", _state(life))
    table.add_row("registered", f"at revision {life['revision']} (its fencing token)")
    table.add_row("by", f"dp_rank {life['dp_rank']}, in its epoch {life['epoch']}")
    if life["changed_revision"] != life["revision"]:
        table.add_row(life["state"], f"at revision {life['changed_revision']}")
    if life["seconds_left"] is None:
        table.add_row("lease", f"{life['lease']}, its time is not known")
    else:
        left = f"{life['seconds_left']} s left" if life["seconds_left"] else "expired"
        table.add_row("lease", f"{life['lease']}, {left}, {life['lease_age_seconds']} s old")
    return table


def status_tables(found: dict[str, Any]) -> RenderableType:
    """What is wrong, then etcd, then the cell."""
    if found["rooms"] is None:
        rooms = "not known: this agent serves prefill engines alone, and has none"
    else:
        rooms = ", ".join(f"{count} {state}" for state, count in found["rooms"].items() if count) or "none"
    etcd = [_members(found["etcd"])] if found["etcd"] else []
    return Group(_verdict(found), *etcd, instance_tables(found), f"rooms: {rooms}\n")


def stale_line(stale: dict[str, Any]) -> Text:
    """That what follows is an agent's view, and how old that is."""
    text = f"etcd does not answer; from the agent on {stale['socket']}, {stale['age_seconds']:.0f} s old"
    return Text(printable(text), style="bold yellow")


def _verdict(found: dict[str, Any]) -> RenderableType:
    """A line for each problem, with the runbook's heading for it; what there is; who left, and who remembers that."""
    problems, memory = found["problems"], found["memory"]
    lines = Text() if problems else Text("nothing is wrong, as far as is known here\n", style="green")
    for problem in problems[:MOST_LINES]:
        style = "bold red" if problem["severity"] == WRONG else "yellow"
        since = "" if problem["seconds"] is None else f", for {_duration(problem['seconds'])}"
        lines.append(printable(f"{problem['severity']}: {problem['text']}{since}"), style=style)
        lines.append(f"  (docs/runbook.md, {problem['runbook']})\n")
    if len(problems) > MOST_LINES:
        lines.append(f"and {len(problems) - MOST_LINES} more: --output json\n", style="bold red")
    lines.append(f"there: {describe_counts(found['counts'])}\n")
    if memory is None:
        lines.append("no agent of this cell answers here: who is gone altogether is not known\n", style="dim")
        return lines
    left = [one for one in memory["gone"] if one["left"]]
    for one in left[-MOST_LINES:]:
        name = f"{one['name']}/{one['rank']}" if one["rank"] else one["name"]
        lines.append(printable(f"left: {one['kind']} {name}, {_duration(one['seconds'])} ago") + "\n", style="dim")
    who = printable(f"the agent on {memory['socket']}")
    lines.append(f"who is gone is known from {who}, for the last {_duration(memory['seconds'])}\n", style="dim")
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _members(etcd: dict[str, Any]) -> RenderableType:
    leases = "not permitted" if etcd["leases"] is None else etcd["leases"]
    title = f"etcd cluster {etcd['cluster_id']} at revision {etcd['revision']}, {leases} leases"
    table = plain_table(title, "member", "role", "version", "database:", "in use:", "term:")
    for member in etcd["members"]:
        name = member["name"] or member["id"]
        if "error" in member:
            table.add_row(name, f"no answer: {member['error']}", "", "", "", "")
            continue
        role = "leader" if member["leader"] else "learner" if member["learner"] else "follower"
        sizes = (_megabytes(member["db_size_bytes"]), _megabytes(member["db_size_in_use_bytes"]))
        table.add_row(name, role, member["version"], *sizes, str(member["raft_term"]))
    alarms = ["alarms: not permitted"] if etcd["alarms"] is None else []
    alarms += [f"ALARM {alarm['alarm']} at {alarm['member']}" for alarm in etcd["alarms"] or ()]
    return Group(table, *alarms)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def instance_tables(found: dict[str, Any]) -> RenderableType:
    """Prefill ranks, with the rooms that they hold where that was counted, then decode instances and agents."""
    columns = ["instance", "policy", "rank:", "epoch:", "state", "address", "rooms:"]
    counted = any("rooms" in rank for instance in found["prefill"] for rank in instance["ranks"])
    prefill = plain_table(f"prefill instances in {found['root']}", *columns[: 7 if counted else 6])
    for instance in found["prefill"]:
        name, policy = instance["id"], instance.get("policy", "")
        if not instance["ranks"]:
            prefill.add_row(name, policy, "none", "", instance["state"])
        for rank in instance["ranks"]:
            rooms = [str(rank["rooms"])] if counted else []
            prefill.add_row(name, policy, rank["name"], str(rank["epoch"]), rank["state"], rank["address"], *rooms)
            name = policy = ""
    others = plain_table("decode instances and agents", "kind", "id", "address", "session lease:", "time left:")
    for kind, entries in (("decode", found["decode"]), ("agent", found["agents"])):
        for entry in entries:
            left = _time_left(entry["seconds_left"])
            others.add_row(kind, entry["id"], str(entry.get("address", "")), entry["lease"], left)
    return Group(prefill, others)
