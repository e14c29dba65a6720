"""Tables of what :mod:`etcd_pd.cli.views` read."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType

from ..console import plain_table


def room_table(found: dict[str, Any]) -> RenderableType:
    """One row a room."""
    title = f"{len(found['rooms'])} rooms in {found['root']} at revision {found['revision']}"
    table = plain_table(title, "instance", "room:", "dp_rank:", "epoch:", "state", "lease:", "time left:")
    for room in found["rooms"]:
        state = f"{room['state']}: {room['reason']}" if room["reason"] else room["state"]
        left = f"{room['seconds_left']} s" if room["seconds_left"] else "expired"
        table.add_row(
            room["instance"], str(room["room"]), str(room["dp_rank"]), str(room["epoch"]), state, room["lease"], left
        )
    return table


def instance_tables(found: dict[str, Any]) -> RenderableType:
    """Prefill ranks, then decode instances and agents."""
    prefill = plain_table(
        f"prefill instances in {found['root']}", "instance", "policy", "rank:", "epoch:", "state", "address"
    )
    for instance in found["prefill"]:
        name, policy = instance["id"], instance.get("policy", "")
        if not instance["ranks"]:
            prefill.add_row(name, policy, "none", "", instance["state"], "")
        for rank in instance["ranks"]:
            prefill.add_row(name, policy, rank["rank"], str(rank["epoch"]), rank["state"], rank["address"])
            name = policy = ""
    others = plain_table("decode instances and agents", "kind", "id", "address", "session lease:")
    for kind, entries in (("decode", found["decode"]), ("agent", found["agents"])):
        for entry in entries:
            others.add_row(kind, entry["id"], str(entry.get("address", "")), entry["lease"])
    return Group(prefill, others)
