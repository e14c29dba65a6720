"""What ``etcd-pd doctor`` says of the cell: whether ``etcd-pd status`` would find something wrong with it."""

from __future__ import annotations

from ..errors import StoreError
from .checks import FAIL, OK, SKIP, Finding
from .from_agent import ask_memory
from .look import NodeSettings
from .printable import printable
from .verdict import WRONG, judge_cell
from .views import read_cell

#: Most problems that are named.
MOST_NAMED = 5


async def check_cell(settings: NodeSettings) -> Finding:
    """Ranks, instances, decodes and agents that are missing; etcd itself is looked at by other checks."""
    from ..store.admin import EtcdAdmin

    memory = ask_memory(settings.socket_path, settings.root)
    try:
        async with EtcdAdmin(settings.etcd) as store:
            found = await read_cell(store, settings.root, memory)
    except StoreError as exc:
        return Finding("cell", SKIP, f"needs an etcd that answers: {exc}")
    problems = judge_cell(found)
    wrong = [problem for problem in problems if problem.severity == WRONG]
    named = "; ".join(problem.text for problem in (wrong or problems)[:MOST_NAMED])
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        hint = f"etcd-pd status says more; docs/runbook.md, {wrong[0].runbook}"
        return Finding("cell", FAIL, printable(named + more), hint)
    return Finding("cell", OK, f"nothing is missing{printable(f' ({named})') if named else ''}")
