"""A killed rank, as every command, log and page shows it: ``make transcript`` writes it into docs/operations.md."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.e2e.running import RunningStack
from tests.e2e.scenes import busy_stack, dashboard, wait_for_rooms
from tests.support.chromium import Page
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PAGE, ALERTS = ROOT / "docs" / "operations.md", ROOT / "helm" / "etcd-pd" / "templates" / "_alerts.tpl"
BEGIN, END = "<!-- transcript: written by make transcript -->", "<!-- end of transcript -->"
RANK = 2
#: Most lines of one log.
MOST_LINES = 6
#: How long the death is let sink in before anybody is asked, seconds: as long as a person takes to look.
LOOK_SECONDS = 5.0


def watch_a_rank_die() -> str:
    """The transcript."""
    with busy_stack() as stack, dashboard(stack) as url:
        wait_for_rooms(stack)
        pid, before = stack.rank_pids()[RANK], _logs(stack)
        page, after = asyncio.run(_page(url, pid)), _logs(stack)
        problem, finding = _run(stack, "status", r"^(wrong|degraded): "), _run(stack, "doctor", r"^\w+ *cell: ")
        parts = [
            f"$ kill -9 {pid}   # the process of dp_rank {RANK}\n",
            f"$ etcd-pd status\n{problem}",
            f"$ etcd-pd doctor\n{finding}",
            f"# the page's list of what is wrong\n{page}\n",
            *(f"# the log of {name}\n{_since(before[name], text)}" for name, text in after.items()),
            f"$ curl -s {stack.metrics('agent-prefill-0')} | grep ^etcd_pd_rank_rooms\n{_metrics(stack)}",
            f"# the alert that counts these\n{_alerts(problem)}",
        ]
    return "\n".join(parts)


async def _page(url: str, pid: int) -> str:
    """Kill the rank while the page is looked at; what the page then says is wrong."""
    async with Page() as page:
        await page.open(url)
        await page.until("document.getElementById('verdict').className === 'good'")
        os.kill(pid, signal.SIGKILL)
        await page.until("document.getElementById('verdict').className === 'bad'")
        await asyncio.sleep(LOOK_SECONDS)
        return str(await page.value("document.getElementById('problems').innerText"))


def _run(stack: RunningStack, command: str, wanted: str) -> str:
    """The lines of a command that say what is wanted, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "etcd_pd", command], capture_output=True, text=True, timeout=60, env=stack.environ
    )
    lines = [line for line in done.stdout.splitlines() if re.match(wanted, line)]
    return "\n".join([*lines, f"(exit status {done.returncode})", ""])


def _logs(stack: RunningStack) -> dict[str, str]:
    """What the rank's agent and its engine have logged so far."""
    return {name: (stack.run_dir / f"{name}.log").read_text() for name in ("agent-prefill-0", "prefill-0")}


def _since(before: str, now: str) -> str:
    lines = [line for line in now.removeprefix(before).splitlines() if " summary " not in line]
    more = [f"(and {len(lines) - MOST_LINES} more)"] if len(lines) > MOST_LINES else []
    return "\n".join([*lines[:MOST_LINES], *more, ""])


def _metrics(stack: RunningStack) -> str:
    def read() -> list[str]:
        with urllib.request.urlopen(stack.metrics("agent-prefill-0"), timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return [line for line in lines if line.startswith("etcd_pd_rank_rooms")]

    return "\n".join([*wait_until(read, "the agent answers a scrape"), ""])


def _alerts(problems: str) -> str:
    """The alerts that what is wrong names, as the chart has them."""
    names = dict.fromkeys(re.findall(r"^wrong: .*docs/runbook.md, (\w+)", problems, re.MULTILINE))
    chart = ALERTS.read_text()
    rules = [re.search(rf"^- alert: {name}$.*?^    summary: (.*?)$", chart, re.MULTILINE | re.DOTALL) for name in names]
    return "".join(f"{name}: {rule[1]}\n" for name, rule in zip(names, rules, strict=True) if rule)


def main() -> None:
    """Write it into the page."""
    transcript = watch_a_rank_die()
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n```\n{transcript}```\n{END}{after}")
    print(transcript)


if __name__ == "__main__":
    main()
