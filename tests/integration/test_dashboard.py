"""``etcd-pd dashboard`` in a real browser: what it shows, that it follows, and that it needs nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from etcd_pd import Client, connect
from etcd_pd.reference.local.embedded import EmbeddedEtcd
from tests.support.agents import FOUR_RANKS, AgentProcess, announce
from tests.support.children import child, end
from tests.support.chromium import Page
from tests.support.etcd_server import EtcdServer
from tests.support.etcdctl import EtcdCtl

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
#: JavaScript for what is said of rooms.
ROOMS = "document.getElementById('room-events').innerText"
LONG = "prefill-" + "x" * 100
HOSTILE = "<img-src=x-onerror=alert(1)>"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with EmbeddedEtcd.start() as server:
        yield server.endpoint


class Cell:
    """A cell whose keys the test writes."""

    def __init__(self, endpoint: str, root: str) -> None:
        self.ctl, self.root = EtcdCtl(endpoint), root
        self.epochs: dict[int, int] = {}

    def put(self, key: str, value: Any, lease: int = 0) -> int:
        return self.ctl.put(f"{self.root}/v1/{key}", json.dumps(value), lease)

    def announce(self, instance: str = "prefill-0", ranks: int = 4) -> None:
        topology = {"dp": ranks, "cp": 1, "tp": 1, "pp": 1}
        info = {"incarnation": "i1", "launch_id": "l1", "addresses": ["h:1"], "topology": topology, "policy": "x"}
        self.put(f"prefill/{instance}", info)
        for rank in range(ranks):
            endpoint = {"incarnation": "i1", "ip": "10.0.0.1", "port": 7000 + rank, "state": "serving"}
            self.epochs[rank] = self.put(f"prefill/{instance}/ranks/{rank}.0.0.0", endpoint)

    def register(self, room: int, rank: int, instance: str = "prefill-0") -> None:
        self.put(f"rooms/{instance}/{room}", {"dp_rank": rank, "epoch": self.epochs[rank], "state": "assigned"})

    def lose(self, rank: int, instance: str = "prefill-0") -> None:
        self.ctl.delete(f"{self.root}/v1/prefill/{instance}/ranks/{rank}.0.0.0")


@pytest.fixture
def cell(endpoint: str, root: str) -> Cell:
    return Cell(endpoint, root)


@contextmanager
def dashboard(endpoint: str, root: str, *sockets: str) -> Iterator[str]:
    """The page's URL."""
    command = [sys.executable, "-m", "etcd_pd", "dashboard", "--etcd", endpoint, "--root", root]
    command += ["--dashboard-listen", "127.0.0.1:0", "--socket", ",".join(sockets)]
    with child(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert end(process) == 0


def tile(rank: int) -> str:
    """JavaScript for a rank's tile."""
    return f"document.querySelector('[data-key=\"prefill-0/{rank}\"]')"


@pytest.mark.asyncio
async def test_it_shows_the_cell_and_follows_a_rank_s_death(cell: Cell, endpoint: str) -> None:
    cell.announce()
    lease = cell.ctl.grant(60)
    cell.put("agents/agent-0", {"version": 1}, lease)
    for room in range(3):
        cell.register(room, 1)
    cell.register(2**63 - 1, 2)
    with dashboard(endpoint, cell.root) as url:
        async with Page() as page:
            await page.size(1280, 1000)
            await page.open(url)
            await page.until(f"{tile(1)}?.innerText.includes('3 rooms')")
            await page.until("document.getElementById('watch').textContent === 'synced'")
            assert await page.value("document.title") == cell.root
            assert await page.value("document.getElementById('rooms').textContent") == "4"
            assert [await page.value(f"{tile(rank)}.dataset.state") for rank in range(4)] == ["serving"] * 4
            await page.until("document.getElementById('members').innerText.includes('leader')")
            await page.until("/agent agent-0: \\d+ s left/.test(document.getElementById('leases').innerText)")
            loads = [float(await page.value(f"{tile(rank)}.style.getPropertyValue('--load')")) for rank in (0, 1, 2)]
            assert loads == [0, 1, pytest.approx(1 / 3)]

            cell.lose(2)
            await page.until(f"{tile(2)}.dataset.state === 'gone'")
            await page.until("document.getElementById('events').innerText.includes('gone rank prefill-0 rank 2')")
            await page.until("document.getElementById('verdict').className === 'bad'")
            said = await page.value("document.getElementById('problems').innerText")
            assert (
                "prefill prefill-0: 3 of 4 rank processes: dp_rank 2 missing" in said and "EtcdPdRanksMissing" in said
            )
            there = await page.value("document.getElementById('there').innerText")
            assert there.startswith("there: members of etcd 1 of 1, rank processes 3 of 4, prefill instances 1 of 1")
            cell.register(77, 3)
            await page.until(f"{ROOMS}.includes('registered room prefill-0 77 rank 3')")
            cell.register(2**63 - 2, 3)  # more than a JavaScript number holds
            await page.until(f"{ROOMS}.includes('{2**63 - 2}')")
            assert "room" not in await page.value("document.getElementById('events').innerText"), (
                "they scroll nothing away"
            )
            assert page.complaints == []


@pytest.mark.asyncio
async def test_agents_here_say_how_they_are_and_how_fast_rooms_are(endpoint: str, root: str) -> None:
    with AgentProcess(endpoint, root) as agent, connect(agent.socket_path) as client:
        announce(client, "prefill-0", topology=FOUR_RANKS)
        with dashboard(endpoint, root, agent.socket_path) as url:
            async with Page() as page:
                await page.size(1600, 1000)
                await page.open(url)
                await page.until("document.getElementById('leases').innerText.includes('session live, watch synced')")
                assert await page.value("document.getElementById('register').textContent") == "p50 –, p99 –"
                await asyncio.to_thread(_register_and_resolve, client)
                for which in ("register", "resolve"):
                    await page.until(f"/^p50 [0-9.]+ m?s, p99 /.test(document.getElementById('{which}').textContent)")
                await page.point(*await page.middle("#register ~ .plot svg", 0.999))
                await page.until("/^[01] s ago: p50 /.test(document.querySelector('#register ~ .note').textContent)")
                await page.point(0, 0)
                await page.until("document.querySelector('#register ~ .note').textContent.startsWith('from the')")

                agent.process.send_signal(signal.SIGKILL)
                said = "agent agent does not answer on"
                await page.until(f"document.getElementById('problems').innerText.includes('{said}')")
                await page.until("document.getElementById('leases').innerText.includes('has not answered for')")
                assert page.complaints == []


def _register_and_resolve(client: Client) -> None:
    client.prefill.register(7)
    client.decode.resolve("prefill-0", 7, timeout=30)


@pytest.mark.asyncio
async def test_numbers_of_etcd_are_grey_and_agents_still_speak_when_etcd_is_frozen(root: str) -> None:
    with EmbeddedEtcd.start() as etcd, AgentProcess(etcd.endpoint, root) as agent:
        Cell(etcd.endpoint, root).announce()
        with dashboard(etcd.endpoint, root, agent.socket_path) as url, frozen(etcd) as freeze:
            async with Page() as page:
                await page.open(url)
                await page.until("document.getElementById('verdict').className === 'good'")
                freeze()
                await page.until("/^stale, \\d+ s old$/.test(document.getElementById('watch').textContent)")
                await page.until("/etcd does not answer.*, for /.test(document.getElementById('problems').innerText)")
                await page.until("document.getElementById('leases').innerText.includes('watch stale')")
                grey = "getComputedStyle(document.querySelector('{}')).filter"
                for what, shown in (
                    ("#rooms", "grayscale(1)"),
                    ("#leases .lease", "grayscale(1)"),
                    ("#register", "none"),
                ):
                    assert await page.value(grey.format(what)) == shown, what


@contextmanager
def frozen(etcd: EmbeddedEtcd) -> Iterator[Callable[[], None]]:
    """What stops an etcd; it goes on when the context is left."""
    yield lambda: os.kill(etcd.process.pid, signal.SIGSTOP)
    os.kill(etcd.process.pid, signal.SIGCONT)


@pytest.mark.asyncio
async def test_it_goes_on_when_etcd_does_not_answer(etcd: EtcdServer, root: str) -> None:
    cell = Cell(etcd.endpoint, root)
    cell.announce()
    with dashboard(etcd.endpoint, root) as url:
        async with Page() as page:
            await page.open(url)
            await page.until("document.getElementById('watch').textContent === 'synced'")
            await asyncio.to_thread(etcd.kill)
            await page.until("/^stale, \\d+ s old$/.test(document.getElementById('watch').textContent)")
            await page.until("document.getElementById('problems').innerText.includes('etcd does not answer')")
            assert await page.value("document.body.className") == "old"
            assert await page.value(f"{tile(0)}.dataset.state") == "serving"
            await asyncio.to_thread(etcd.start)
            await page.until("document.getElementById('watch').textContent === 'synced'")
            cell.lose(0)
            await page.until(f"{tile(0)}.dataset.state === 'gone'")
            assert page.complaints == []


@pytest.mark.asyncio
async def test_it_is_used_by_keyboard_alone(cell: Cell, endpoint: str) -> None:
    cell.announce()
    with dashboard(endpoint, cell.root) as url:
        async with Page() as page:
            await page.open(url)
            await page.until(f"!!{tile(3)}")
            await page.press("Tab")
            assert await page.value("document.activeElement.dataset.key") == "prefill-0/0"
            await page.press("Tab")
            await page.press("Enter")
            assert await page.value(f"{tile(1)}.getAttribute('aria-pressed')") == "true"
            cell.register(1, 0)
            cell.register(2, 1)
            await page.until(f"{ROOMS}.includes('prefill-0 2')")
            assert "prefill-0 1 " not in await page.value(ROOMS)
            assert await page.value("document.activeElement.dataset.key") == "prefill-0/1"  # updates keep the focus
            await page.press("Enter")
            await page.until(f"{ROOMS}.includes('prefill-0 1 ')")


@pytest.mark.asyncio
async def test_it_is_readable_on_a_phone_and_in_the_dark(cell: Cell, endpoint: str) -> None:
    cell.announce(ranks=16)
    cell.announce(instance=LONG, ranks=1)
    cell.put(f"agents/{LONG}", {"version": 1}, cell.ctl.grant(60))
    with dashboard(endpoint, cell.root) as url:
        async with Page() as page:
            await page.size(360, 740)
            await page.open(url)
            await page.until(f"!!{tile(15)}")
            await page.until(f"document.getElementById('leases').innerText.includes('{LONG}')")
            assert await page.value("document.documentElement.scrollWidth <= window.innerWidth")
            grounds = []
            for scheme in ("light", "dark"):
                await page.colours(scheme)
                grounds.append(await page.value("getComputedStyle(document.body).backgroundColor"))
                contrast = await page.value(CONTRAST)
                assert contrast >= 4.5, scheme
            assert grounds[0] != grounds[1]


#: The least contrast, by WCAG's formula, of texts that are shown on the page's panels.
CONTRAST = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/\\d+(\\.\\d+)?/g).slice(0, 3).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.querySelector('section')).backgroundColor);
  const texts = [...document.querySelectorAll('h2, .figure, li, .tile b')];
  return Math.min(...texts.map(one => light(getComputedStyle(one).color))
    .map(ink => (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)));
})()"""


@pytest.mark.asyncio
async def test_names_from_etcd_are_text(cell: Cell, endpoint: str) -> None:
    cell.announce(instance=HOSTILE, ranks=1)
    with dashboard(endpoint, cell.root) as url:
        async with Page() as page:
            await page.open(url)
            await page.until(f"document.body.innerText.includes({json.dumps(HOSTILE)})")
            assert await page.value("document.querySelectorAll('img').length") == 0
            assert page.complaints == []


def test_the_page_needs_nobody_else(endpoint: str, root: str) -> None:
    with dashboard(endpoint, root) as url, urllib.request.urlopen(url, timeout=5) as answer:
        page = answer.read().decode()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert re.findall(r"""(?:src|href)=["'](?!data:)([^"']+)""", page) == []
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []


def test_a_stranger_s_page_cannot_reach_it_under_a_name_of_its_own(endpoint: str, root: str) -> None:
    with dashboard(endpoint, root) as url:
        host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
        for name, status in ((f"localhost:{port}", b"200"), ("evil.example", b"404"), (f"evil.example:{port}", b"404")):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                assert connection.recv(64).split()[1] == status
